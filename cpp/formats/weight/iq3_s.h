// IQ3_S: 256 values as 9-bit indices of 4 magnitudes, with a sign bit each; per 32 values a 4-bit
// scale in units of a binary16 number.
#pragma once

#include "formats/weight/iq_grids.h"

namespace kve {

struct BlockIQ3_S {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t d[2];    // binary16 unit of the scales
  uint8_t qs[64];  // low 8 bits of the indices
  uint8_t qh[8];   // top bits of the indices, one byte per group
  uint8_t signs[32];
  uint8_t scales[4];  // two to a byte
};
static_assert(sizeof(BlockIQ3_S) == 110);

KVE_HD void unpack_group(const BlockIQ3_S& block, int group, CodeGroup* out) {
  for (int k = 0; k < 8; ++k) {
    const int index = block.qs[8 * group + k] | (((block.qh[group] >> k) & 1) << 8);
    const int signs = block.signs[4 * group + k / 2] >> (4 * (k & 1));
    copy_signed(kIq3SGrid.entries[index], 4, signs, out->codes + 4 * k);
  }
  const int scale = (block.scales[group / 2] >> (4 * (group & 1))) & 15;
  set_scale(out, load_half(block.d) * static_cast<float>(1 + 2 * scale));
}

}  // namespace kve
