// Q6_K: 256 values as 6-bit codes around 32; per 16 values an 8-bit scale in units of a binary16
// number.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct BlockQ6_K {
  static constexpr int kValues = 256;
  static constexpr bool kHasMin = false;
  // Groups come in two halves of four. Of half h, groups 0 and 1 have their low nibbles in the low
  // nibbles of ql bytes 64h.. and 64h+32.., groups 2 and 3 in the high nibbles of the same bytes;
  // the top two bits of group r are at bit 2r of qh bytes 32h...
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint8_t d[2];  // binary16 unit of the scales
};
static_assert(sizeof(BlockQ6_K) == 210);

KVE_HD void unpack_group(const BlockQ6_K& block, int group, CodeGroup* out) {
  const int part = group / 4;
  const int place = group % 4;
  const uint8_t* ql = block.ql + 64 * part + 32 * (place & 1);
  const uint8_t* qh = block.qh + 32 * part;
  for (int i = 0; i < 32; ++i) {
    const int low = (ql[i] >> (4 * (place / 2))) & 15;
    const int high = (qh[i] >> (2 * place)) & 3;
    out->codes[i] = to_code((low | (high << 4)) - 32);
  }
  const float d = load_half(block.d);
  set_scales(out, d * static_cast<float>(block.scales[2 * group]),
             d * static_cast<float>(block.scales[2 * group + 1]));
}

}  // namespace kve
