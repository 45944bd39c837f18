// Rows in binary16 to float32, four numbers at a time on any processor: half_to_float() of each.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/half.h"

namespace kve {

inline void halves_to_floats(const uint16_t* from, float* to, int n) {
  using Halves = uint16_t __attribute__((vector_size(8)));
  using Words = int32_t __attribute__((vector_size(16)));
  using Numbers = float __attribute__((vector_size(16)));
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    Halves halves;
    std::memcpy(&halves, from + i, sizeof(halves));
    const Words words = __builtin_convertvector(halves, Words);
    const Words magnitude = (words & 0x7fff) << 13;
    // The exponent's bias differs by 112; numbers below the smallest normal one become normal.
    Numbers value;
    std::memcpy(&value, &magnitude, sizeof(value));
    value *= 0x1p112f;
    Words bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits |= (words & 0x8000) << 16;
    bits |= (magnitude >= 0x0f800000) & 0x7f800000;  // infinities and NaN
    std::memcpy(to + i, &bits, sizeof(bits));
  }
  for (; i < n; ++i) to[i] = half_to_float(from[i]);
}

}  // namespace kve
