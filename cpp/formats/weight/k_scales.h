// The 6-bit scales and minima that Q4_K and Q5_K share: 8 of each in 12 bytes.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

struct KScale {
  int scale;  // 0..63
  int min;    // 0..63
};

// Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3 in their low 6 bits; bytes 8-11 hold the low
// nibbles of scales 4-7 (low) and minima 4-7 (high), whose top 2 bits sit atop bytes 0-7.
KVE_HD KScale load_k_scale(const uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
  const int low = packed[group + 4];
  return {(low & 15) | ((packed[group - 4] >> 6) << 4), (low >> 4) | ((packed[group] >> 6) << 4)};
}

}  // namespace kve
