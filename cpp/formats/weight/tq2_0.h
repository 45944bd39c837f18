// TQ2_0: 256 ternary values as 2-bit codes around 1, one binary16 scale.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockTQ2_0 {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t qs[64];  // group 4h + r at bit 2r of bytes 32h..32h+31
  uint8_t d[2];    // binary16 scale
};
static_assert(sizeof(BlockTQ2_0) == 66);

KVE_HD void unpack_group(const BlockTQ2_0& block, int group, CodeGroup* out) {
  const uint8_t* qs = block.qs + 32 * (group / 4);
  const int shift = 2 * (group % 4);
  for (int i = 0; i < 32; ++i) out->codes[i] = to_code(((qs[i] >> shift) & 3) - 1);
  set_scale(out, load_half(block.d));
}

}  // namespace kve
