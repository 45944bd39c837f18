// TQ1_0: 256 ternary values, five to a byte in base 3, one binary16 scale.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockTQ1_0 {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  // A byte holds ceil(n * 256 / 243) where n has five values as digits, most significant first.
  uint8_t qs[48];  // value v < 160 in byte v % 32, those up to 239 in byte 32 + v % 16
  uint8_t qh[4];   // values 240-255, four digits to a byte
  uint8_t d[2];    // binary16 scale
};
static_assert(sizeof(BlockTQ1_0) == 54);

// Digit 0..4 of `packed`, less one. Multiplying shifts earlier digits out of the byte.
KVE_HD int8_t ternary_digit(uint8_t packed, int digit) {
  constexpr int kPowers[5] = {1, 3, 9, 27, 81};
  const int shifted = (packed * kPowers[digit]) & 255;
  return to_code(((shifted * 3) >> 8) - 1);
}

KVE_HD void unpack_group(const BlockTQ1_0& block, int group, CodeGroup* out) {
  for (int i = 0; i < 32; ++i) {
    const int value = 32 * group + i;
    if (value < 160) {
      out->codes[i] = ternary_digit(block.qs[i], group);
    } else if (value < 240) {
      out->codes[i] = ternary_digit(block.qs[32 + i % 16], (value - 160) / 16);
    } else {
      out->codes[i] = ternary_digit(block.qh[i % 4], (value - 240) / 4);
    }
  }
  set_scale(out, load_half(block.d));
}

}  // namespace kve
