// IQ4_NL: 32 values as 4-bit indices into a fixed non-uniform codebook, one binary16 scale.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockIQ4_NL {
  static constexpr int kValues = 32;
  static constexpr bool kHasMin = false;
  uint8_t d[2];    // binary16 scale
  uint8_t qs[16];  // value i in the low nibble of byte i, value i + 16 in the high one
};
static_assert(sizeof(BlockIQ4_NL) == 18);

// The codebook of IQ4_NL and IQ4_XS (gguf.quants.IQ4_NL.kvalues).
KVE_HD constexpr int8_t iq4_value(int index) {
  constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
  return kValues[index];
}

KVE_HD void unpack_group(const BlockIQ4_NL& block, int /*group*/, CodeGroup* out) {
  for (int i = 0; i < 16; ++i) {
    out->codes[i] = iq4_value(block.qs[i] & 15);
    out->codes[i + 16] = iq4_value(block.qs[i] >> 4);
  }
  set_scale(out, load_half(block.d));
}

}  // namespace kve
