// Q8_K: 256 values as 8-bit codes, one float32 scale.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockQ8_K {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t d[4];  // float32 scale
  int8_t qs[256];
  uint8_t sums[32];  // int16 sums of each 16 codes; redundant, ignored
};
static_assert(sizeof(BlockQ8_K) == 292);

KVE_HD void unpack_group(const BlockQ8_K& block, int group, CodeGroup* out) {
  for (int i = 0; i < 32; ++i) out->codes[i] = block.qs[32 * group + i];
  set_scale(out, load_float(block.d));
}

}  // namespace kve
