// IQ2_XS: 256 values as 9-bit indices of 8 magnitudes, with 7 sign bits each; per 16 values a 4-bit
// scale in units of a binary16 number.
#pragma once

#include "formats/weight/iq_grids.h"

namespace kve {

struct BlockIQ2_XS {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t d[2];       // binary16 unit of the scales
  uint8_t qs[64];     // 16 bits per 8 values: 9 of the index, 7 signs
  uint8_t scales[8];  // two to a byte
};
static_assert(sizeof(BlockIQ2_XS) == 74);

KVE_HD void unpack_group(const BlockIQ2_XS& block, int group, CodeGroup* out) {
  for (int k = 0; k < 4; ++k) {
    const uint32_t packed = load_u16(block.qs + 8 * group + 2 * k);
    copy_signed(kIq2XsGrid.entries[packed & 511u], 8, even_signs(packed >> 9), out->codes + 8 * k);
  }
  const float d = load_half(block.d);
  const uint32_t scales = block.scales[group];
  set_scales(out, iq2_scale(d, scales & 15u), iq2_scale(d, scales >> 4));
}

}  // namespace kve
