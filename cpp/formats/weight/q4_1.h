// Q4_1: 32 values as 4-bit codes, one binary16 scale and minimum.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockQ4_1 {
  static constexpr int kValues = 32;
  static constexpr bool kHasMin = true;
  uint8_t d[2];    // binary16 scale
  uint8_t m[2];    // binary16 minimum
  uint8_t qs[16];  // value i in the low nibble of byte i, value i + 16 in the high one
};
static_assert(sizeof(BlockQ4_1) == 20);

KVE_HD void unpack_group(const BlockQ4_1& block, int /*group*/, CodeGroup* out) {
  for (int i = 0; i < 16; ++i) {
    out->codes[i] = to_code(block.qs[i] & 15);
    out->codes[i + 16] = to_code(block.qs[i] >> 4);
  }
  set_scale(out, load_half(block.d), load_half(block.m));
}

}  // namespace kve
