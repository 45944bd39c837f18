// MXFP4 (OCP microscaling formats 1.0): 32 values as E2M1 numbers, one power of two as scale.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockMXFP4 {
  static constexpr int kValues = 32;
  static constexpr bool kHasMin = false;
  uint8_t e;       // E8M0 exponent: the scale is 2^(e - 127)
  uint8_t qs[16];  // value i in the low nibble of byte i, value i + 16 in the high one
};
static_assert(sizeof(BlockMXFP4) == 17);

// Twice the E2M1 number, so that it is whole (gguf.quants.MXFP4.kvalues); minus zero reads as zero.
KVE_HD constexpr int8_t mxfp4_value(int index) {
  constexpr int8_t kValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return kValues[index];
}

// 2^(e - 128): half the scale, as the values are doubled. The two smallest are subnormal.
KVE_HD float mxfp4_half_scale(uint8_t e) {
  const uint32_t bits = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
  return float_from_bits(bits);
}

KVE_HD void unpack_group(const BlockMXFP4& block, int /*group*/, CodeGroup* out) {
  for (int i = 0; i < 16; ++i) {
    out->codes[i] = mxfp4_value(block.qs[i] & 15);
    out->codes[i + 16] = mxfp4_value(block.qs[i] >> 4);
  }
  set_scale(out, mxfp4_half_scale(block.e));
}

}  // namespace kve
