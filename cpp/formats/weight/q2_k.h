// Q2_K: 256 values as 2-bit codes; per 16 values a 4-bit scale and minimum in units of two binary16
// numbers.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockQ2_K {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = true;
  uint8_t scales[16];  // per 16 values: scale in the low nibble, minimum in the high one
  uint8_t qs[64];      // group 4h + r at bit 2r of bytes 32h..32h+31
  uint8_t d[2];        // binary16 unit of the scales
  uint8_t dmin[2];     // binary16 unit of the minima, which are subtracted
};
static_assert(sizeof(BlockQ2_K) == 84);

KVE_HD void unpack_group(const BlockQ2_K& block, int group, CodeGroup* out) {
  const uint8_t* qs = block.qs + 32 * (group / 4);
  const int shift = 2 * (group % 4);
  for (int i = 0; i < 32; ++i) out->codes[i] = to_code((qs[i] >> shift) & 3);
  const float d = load_half(block.d);
  const float dmin = load_half(block.dmin);
  for (int part = 0; part < 2; ++part) {
    const int packed = block.scales[2 * group + part];
    out->scale[part] = d * static_cast<float>(packed & 15);
    out->min[part] = -(dmin * static_cast<float>(packed >> 4));
  }
}

}  // namespace kve
