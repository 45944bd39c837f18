// IQ4_XS: 256 values as 4-bit indices into the codebook of IQ4_NL; per 32 values a 6-bit scale
// around 32 in units of a binary16 number.
#pragma once

#include "formats/weight/iq4_nl.h"

namespace kve {

struct BlockIQ4_XS {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  uint8_t d[2];         // binary16 unit of the scales
  uint8_t scales_h[2];  // top two bits of the scale of group g at bit 2g
  uint8_t scales_l[4];  // low nibbles of the scales, two to a byte
  uint8_t qs[128];      // 16 bytes per group: value i in the low nibble, i + 16 in the high one
};
static_assert(sizeof(BlockIQ4_XS) == 136);

KVE_HD void unpack_group(const BlockIQ4_XS& block, int group, CodeGroup* out) {
  const uint8_t* qs = block.qs + 16 * group;
  for (int i = 0; i < 16; ++i) {
    out->codes[i] = iq4_value(qs[i] & 15);
    out->codes[i + 16] = iq4_value(qs[i] >> 4);
  }
  const int low = (block.scales_l[group / 2] >> (4 * (group & 1))) & 15;
  const int high = (load_u16(block.scales_h) >> (2 * group)) & 3;
  set_scale(out, load_half(block.d) * static_cast<float>((low | (high << 4)) - 32));
}

}  // namespace kve
