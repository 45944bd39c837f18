// Q5_1: 32 values as 5-bit codes, one binary16 scale and minimum.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockQ5_1 {
  static constexpr int kValues = 32;
  static constexpr bool kHasMin = true;
  uint8_t d[2];    // binary16 scale
  uint8_t m[2];    // binary16 minimum
  uint8_t qh[4];   // fifth bit of value i at bit i
  uint8_t qs[16];  // low bits: value i in the low nibble of byte i, value i + 16 in the high one
};
static_assert(sizeof(BlockQ5_1) == 24);

KVE_HD void unpack_group(const BlockQ5_1& block, int /*group*/, CodeGroup* out) {
  const uint32_t high = load_u32(block.qh);
  for (int i = 0; i < 16; ++i) {
    const int bit = static_cast<int>((high >> i) & 1u) << 4;
    const int bit16 = static_cast<int>((high >> (i + 16)) & 1u) << 4;
    out->codes[i] = to_code((block.qs[i] & 15) | bit);
    out->codes[i + 16] = to_code((block.qs[i] >> 4) | bit16);
  }
  set_scale(out, load_half(block.d), load_half(block.m));
}

}  // namespace kve
