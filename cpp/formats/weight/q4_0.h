// Q4_0: 32 values as 4-bit codes around 8, one binary16 scale.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockQ4_0 {
  static constexpr int kValues = 32;
  static constexpr bool kHasMin = false;
  uint8_t d[2];    // binary16 scale
  uint8_t qs[16];  // value i in the low nibble of byte i, value i + 16 in the high one
};
static_assert(sizeof(BlockQ4_0) == 18);

KVE_HD void unpack_group(const BlockQ4_0& block, int /*group*/, CodeGroup* out) {
  for (int i = 0; i < 16; ++i) {
    out->codes[i] = to_code((block.qs[i] & 15) - 8);
    out->codes[i + 16] = to_code((block.qs[i] >> 4) - 8);
  }
  set_scale(out, load_half(block.d));
}

}  // namespace kve
