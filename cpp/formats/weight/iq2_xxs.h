// IQ2_XXS: 256 values as 8-bit indices of 8 magnitudes, with 7 sign bits each; per 32 values a
// 4-bit scale in units of a binary16 number.
#pragma once

#include "formats/weight/iq_grids.h"

namespace kve {

struct BlockIQ2_XXS {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t d[2];    // binary16 unit of the scales
  uint8_t qs[64];  // per group: 4 indices, then 32 bits: 4 x 7 signs and the scale on top
};
static_assert(sizeof(BlockIQ2_XXS) == 66);

KVE_HD void unpack_group(const BlockIQ2_XXS& block, int group, CodeGroup* out) {
  const uint8_t* indices = block.qs + 8 * group;
  const uint32_t packed = load_u32(indices + 4);
  for (int k = 0; k < 4; ++k) {
    const int signs = even_signs((packed >> (7 * k)) & 127u);
    copy_signed(kIq2XxsGrid.entries[indices[k]], 8, signs, out->codes + 8 * k);
  }
  set_scale(out, iq2_scale(load_half(block.d), packed >> 28));
}

}  // namespace kve
