// One quantized input of matvec: views into a piece of memory of bytes(cols) bytes. Everything is
// padded with zeros to a multiple of 256 columns.
#pragma once

#include <string.h>

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {
namespace {

struct VectorInput {
  int8_t* codes;  // [cols]
  float* scales;  // per 32
  float* sums;    // per 16: the sum of the codes times their scale
#if defined(KVE_ISA_AVX512)
  // The same in the order in which the steps of avx512/ hold weights.
  int8_t* nibbles;       // per 128: columns 0-15 of its four groups of 32, then columns 16-31
  float* nibble_scales;  // per 128: each group's scale 4 times
  float* nibble_sums;    // per 128, per lane of `nibbles`: sum of its 8 codes times their scale
  int32_t* starts;       // per 64, per lane: -128 times the sum of its 4 codes
  float* k_scales;       // per 256: 8 scales, then 8 sums of groups of 32
  float* half_scales;    // per 16: the scale of its group
#endif
  size_t size;

  static int64_t padded(int64_t cols) { return round_up(cols, 256); }
  static int64_t bytes(int64_t cols) {
    return static_cast<int64_t>(VectorInput(nullptr, cols).size);
  }
  VectorInput() = default;
  VectorInput(std::byte* data, int64_t cols) {
    const int64_t n = padded(cols);
    Carver carver(data);
    codes = carver.take<int8_t>(n);
    scales = carver.take<float>(n / 32);
    sums = carver.take<float>(n / 16);
#if defined(KVE_ISA_AVX512)
    nibbles = carver.take<int8_t>(n);
    nibble_scales = carver.take<float>(n / 8);
    nibble_sums = carver.take<float>(n / 8);
    starts = carver.take<int32_t>(n / 4);
    k_scales = carver.take<float>(n / 16);
    half_scales = carver.take<float>(n / 16);
#endif
    size = carver.size();
  }

  // Derives the rest from `codes` and `scales`.
  void complete(int64_t cols) const {
    const int64_t n = padded(cols);
    memset(codes + cols, 0, static_cast<size_t>(n - cols));
    for (int64_t g = cols / 32; g < n / 32; ++g) scales[g] = 0;
    for (int64_t g = 0; g < n / 32; ++g) {
      int32_t totals[2];
      code_sums(codes + 32 * g, totals);
      sums[2 * g] = scales[g] * static_cast<float>(totals[0]);
      sums[2 * g + 1] = scales[g] * static_cast<float>(totals[1]);
    }
#if defined(KVE_ISA_AVX512)
    complete_lanes(n);
#endif
  }

 private:
#if defined(KVE_ISA_AVX512)
  void complete_lanes(int64_t n) const {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t step = 0; step < n / 128; ++step) {
      for (int64_t group = 0; group < 4; ++group) {
        const int8_t* from = codes + 128 * step + 32 * group;
        memcpy(nibbles + 128 * step + 16 * group, from, 16);
        memcpy(nibbles + 128 * step + 64 + 16 * group, from + 16, 16);
      }
      const __m128 four = _mm_loadu_ps(scales + 4 * step);
      const __m512 each =
          _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                _mm512_castps128_ps512(four));
      __m512i total = _mm512_setzero_si512();
      total = _mm512_dpbusd_epi32(total, ones, _mm512_loadu_si512(nibbles + 128 * step));
      total = _mm512_dpbusd_epi32(total, ones, _mm512_loadu_si512(nibbles + 128 * step + 64));
      _mm512_storeu_ps(nibble_scales + 16 * step, each);
      _mm512_storeu_ps(nibble_sums + 16 * step, _mm512_mul_ps(each, _mm512_cvtepi32_ps(total)));
    }
    for (int64_t i = 0; i < n; i += 64) {
      const __m512i total =
          _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_loadu_si512(codes + i));
      _mm512_storeu_si512(starts + i / 4,
                          _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), total), 7));
    }
    for (int64_t g = 0; g < n / 32; ++g) {
      k_scales[g / 8 * 16 + g % 8] = scales[g];
      k_scales[g / 8 * 16 + 8 + g % 8] = sums[2 * g] + sums[2 * g + 1];
      half_scales[2 * g] = half_scales[2 * g + 1] = scales[g];
    }
  }
#endif
};

}  // namespace
}  // namespace kve::KVE_ISA
