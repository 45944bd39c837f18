// IQ2_S: 256 values as 10-bit indices of 8 magnitudes, with 8 sign bits each; per 16 values a 4-bit
// scale in units of a binary16 number.
#pragma once

#include "formats/weight/iq_grids.h"

namespace kve {

struct BlockIQ2_S {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t d[2];    // binary16 unit of the scales
  uint8_t qs[32];  // low 8 bits of the indices
  uint8_t signs[32];
  uint8_t qh[8];      // top 2 bits of the indices, four to a byte
  uint8_t scales[8];  // two to a byte
};
static_assert(sizeof(BlockIQ2_S) == 82);

KVE_HD void unpack_group(const BlockIQ2_S& block, int group, CodeGroup* out) {
  for (int k = 0; k < 4; ++k) {
    const int index = block.qs[4 * group + k] | (((block.qh[group] >> (2 * k)) & 3) << 8);
    copy_signed(kIq2SGrid.entries[index], 8, block.signs[4 * group + k], out->codes + 8 * k);
  }
  const float d = load_half(block.d);
  const uint32_t scales = block.scales[group];
  set_scales(out, iq2_scale(d, scales & 15u), iq2_scale(d, scales >> 4));
}

}  // namespace kve
