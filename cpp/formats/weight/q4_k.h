// Q4_K: 256 values as 4-bit codes; per 32 values a 6-bit scale and minimum in units of two
// binary16 numbers.
#pragma once

#include "formats/weight/k_scales.h"

namespace kve {

struct BlockQ4_K {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = true;
  uint8_t d[2];        // binary16 unit of the scales
  uint8_t dmin[2];     // binary16 unit of the minima, which are subtracted
  uint8_t scales[12];  // see k_scales.h
  uint8_t qs[128];     // groups 2j and 2j + 1 in the low and high nibbles of bytes 32j..32j+31
};
static_assert(sizeof(BlockQ4_K) == 144);

KVE_HD void unpack_group(const BlockQ4_K& block, int group, CodeGroup* out) {
  const uint8_t* qs = block.qs + 32 * (group / 2);
  const int shift = 4 * (group & 1);
  for (int i = 0; i < 32; ++i) out->codes[i] = to_code((qs[i] >> shift) & 15);
  const KScale k = load_k_scale(block.scales, group);
  set_scale(out, load_half(block.d) * static_cast<float>(k.scale),
            -(load_half(block.dmin) * static_cast<float>(k.min)));
}

}  // namespace kve
