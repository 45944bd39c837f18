// IQ1_M: 256 values as 11-bit indices of 8 ternary values, each with a shift of +-1/8; per 16
// values a 3-bit scale in units of a binary16 number that is spread over the scales' spare bits.
#pragma once

#include "formats/weight/iq_grids.h"

namespace kve {

struct BlockIQ1_M {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t qs[32];     // low 8 bits of the indices
  uint8_t qh[16];     // per 8 values a nibble: top 3 bits of the index, sign of the shift
  uint8_t scales[8];  // per 64 values 16 bits: 4 x 3 of the scales, 4 of the binary16 unit
};
static_assert(sizeof(BlockIQ1_M) == 56);

// The binary16 unit of the scales, lowest nibble first.
KVE_HD float iq1_m_unit(const BlockIQ1_M& block) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    bits |= static_cast<uint32_t>(block.scales[2 * i + 1] >> 4) << (4 * i);
  }
  return half_to_float(static_cast<uint16_t>(bits));
}

KVE_HD void unpack_group(const BlockIQ1_M& block, int group, CodeGroup* out) {
  for (int k = 0; k < 4; ++k) {
    const int high = block.qh[2 * group + k / 2] >> (4 * (k & 1));
    const int index = block.qs[4 * group + k] | ((high & 7) << 8);
    copy_shifted(kIq1Grid.entries[index], (high & 8) != 0, out->codes + 8 * k);
  }
  const float d = iq1_m_unit(block);
  const int packed = load_u16(block.scales + 2 * (group / 2)) >> (6 * (group & 1));
  set_scales(out, d * static_cast<float>(2 * (packed & 7) + 1) * 0.125f,
             d * static_cast<float>(2 * ((packed >> 3) & 7) + 1) * 0.125f);
}

}  // namespace kve
