// IQ3_XXS: 256 values as 8-bit indices of 4 magnitudes, with 7 sign bits per 8 values; per 32
// values a 4-bit scale in units of a binary16 number.
#pragma once

#include "formats/weight/iq_grids.h"

namespace kve {

struct BlockIQ3_XXS {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t d[2];              // binary16 unit of the scales
  uint8_t qs[64];            // indices
  uint8_t scales_signs[32];  // 32 bits per group: 4 x 7 signs and the scale on top
};
static_assert(sizeof(BlockIQ3_XXS) == 98);

KVE_HD void unpack_group(const BlockIQ3_XXS& block, int group, CodeGroup* out) {
  const uint32_t packed = load_u32(block.scales_signs + 4 * group);
  for (int k = 0; k < 8; ++k) {
    const int signs = even_signs((packed >> (7 * (k / 2))) & 127u) >> (4 * (k & 1));
    copy_signed(kIq3XxsGrid.entries[block.qs[8 * group + k]], 4, signs, out->codes + 4 * k);
  }
  set_scale(out, load_half(block.d) * (0.5f + static_cast<float>(packed >> 28)) * 0.5f);
}

}  // namespace kve
