// Scales to lanes.
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// values[first] in lanes 0-7 and values[first + 1] in lanes 8-15.
static inline __m512 spread_pair(__m512 values, int first) {
  const __m512i index = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  return _mm512_permutexvar_ps(_mm512_add_epi32(index, _mm512_set1_epi32(first)), values);
}

}  // namespace kve::KVE_ISA
