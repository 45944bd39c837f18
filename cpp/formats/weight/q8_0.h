// Q8_0: 32 values as 8-bit codes, one binary16 scale.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockQ8_0 {
  static constexpr int kValues = 32;
  static constexpr bool kHasMin = false;
  uint8_t d[2];  // binary16 scale
  int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

KVE_HD void unpack_group(const BlockQ8_0& block, int /*group*/, CodeGroup* out) {
  for (int i = 0; i < 32; ++i) out->codes[i] = block.qs[i];
  set_scale(out, load_half(block.d));
}

}  // namespace kve
