// IQ1_S: 256 values as 11-bit indices of 8 ternary values; per 32 values a 3-bit scale in units of
// a binary16 number and a common shift of +-1/8.
#pragma once

#include "formats/weight/iq_grids.h"

namespace kve {

struct BlockIQ1_S {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t d[2];    // binary16 unit of the scales
  uint8_t qs[32];  // low 8 bits of the indices
  uint8_t qh[16];  // 16 bits per group: 4 x top 3 bits of the indices, 3 of the scale, shift's sign
};
static_assert(sizeof(BlockIQ1_S) == 50);

KVE_HD void unpack_group(const BlockIQ1_S& block, int group, CodeGroup* out) {
  const int high = load_u16(block.qh + 2 * group);
  for (int k = 0; k < 4; ++k) {
    const int index = block.qs[4 * group + k] | (((high >> (3 * k)) & 7) << 8);
    copy_shifted(kIq1Grid.entries[index], (high & 0x8000) != 0, out->codes + 8 * k);
  }
  const float scale = load_half(block.d) * static_cast<float>(2 * ((high >> 12) & 7) + 1);
  set_scale(out, scale * 0.125f);
}

}  // namespace kve
