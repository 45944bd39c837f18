// How the AVX-512 steps (block_steps.h: 32-value blocks, super_steps.h: 256) read a row.
//
// A step is what one iteration of matvec takes from a row: four blocks of 32 values, or one of 256.
// A step type gives
//   kCols, kGroups, kBytes   columns, groups of 32 and bytes of a step
//   Step(bytes)              unpacks; `bytes` is one of the types below
//   add(acc, x, step)        acc plus the products with input x, spread over the lanes
#pragma once

#include <string.h>

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {
namespace {

// 64 bytes at `offset` of a step that is complete.
struct WholeStep {
  static constexpr bool kWhole = true;
  const std::byte* data;
  __m512i operator()(int offset) const { return _mm512_loadu_si512(data + offset); }
  __m256i half(int offset) const {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + offset));
  }
  uint16_t word(int offset) const {
    uint16_t value;
    memcpy(&value, data + offset, sizeof(value));
    return value;
  }
};
// A step of which only the first `size` bytes exist; the rest reads as zero.
struct PartialStep {
  static constexpr bool kWhole = false;
  const std::byte* data;
  int64_t size;
  __m512i operator()(int offset) const {
    const int64_t n = size - offset;
    if (n <= 0) return _mm512_setzero_si512();
    const __mmask64 mask = n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1;
    return _mm512_maskz_loadu_epi8(mask, data + offset);
  }
  __m256i half(int offset) const { return _mm512_castsi512_si256((*this)(offset)); }
  uint16_t word(int offset) const {
    return static_cast<uint16_t>(_mm_cvtsi128_si32(_mm512_castsi512_si128((*this)(offset))));
  }
};

}  // namespace
}  // namespace kve::KVE_ISA
