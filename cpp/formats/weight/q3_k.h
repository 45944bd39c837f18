// Q3_K: 256 values as 3-bit codes around 4; per 16 values a 6-bit scale around 32 in units of a
// binary16 number.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockQ3_K {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t hmask[32];   // third bit of value i of group g at bit g of byte i
  uint8_t qs[64];      // low two bits of group 4h + r at bit 2r of bytes 32h..32h+31
  uint8_t scales[12];  // 16 scales: low nibbles in bytes 0-7, then the top two bits in bytes 8-11
  uint8_t d[2];        // binary16 unit of the scales
};
static_assert(sizeof(BlockQ3_K) == 110);

// Scale `index` of 0..15, in -32..31.
KVE_HD int q3_k_scale(const BlockQ3_K& block, int index) {
  const int low = (block.scales[index % 8] >> (4 * (index / 8))) & 15;
  const int high = (block.scales[8 + index % 4] >> (2 * (index / 4))) & 3;
  return (low | (high << 4)) - 32;
}

KVE_HD void unpack_group(const BlockQ3_K& block, int group, CodeGroup* out) {
  const uint8_t* qs = block.qs + 32 * (group / 4);
  const int shift = 2 * (group % 4);
  for (int i = 0; i < 32; ++i) {
    const int high = ((block.hmask[i] >> group) & 1) << 2;
    out->codes[i] = to_code((((qs[i] >> shift) & 3) | high) - 4);
  }
  const float d = load_half(block.d);
  set_scales(out, d * static_cast<float>(q3_k_scale(block, 2 * group)),
             d * static_cast<float>(q3_k_scale(block, 2 * group + 1)));
}

}  // namespace kve
