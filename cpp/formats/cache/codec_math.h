// What the cache codecs share. Each header of this folder describes one codec as a tag type and
// free functions on it, so that a kernel compiled for one codec finds them by overloading:
//   size_t code_bytes(Tag, int rows, int width, int group);
//   size_t scale_bytes(Tag, int rows, int width, int group);
//   bool encode_row(Tag, const float* src, std::byte* page, int row, int width, int group);
//   void decode_row(Tag, const std::byte* page, int row, int width, int group, float* dst);
// A page is laid out for kPageTokens rows. encode_row returns false, leaving the row undefined,
// when a value is NaN or infinite; finite values that are too large for a field saturate.
//
// Compile encoders without floating-point contraction (as cache_codecs.cpp is): a fused
// multiply-add may round a code the other way. Decoders give the same bits either way.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "base/portable.h"

namespace kve {

static_assert(std::endian::native == std::endian::little, "pages are little-endian bytes");

constexpr int kPageTokens = 64;  // rows of a page

constexpr uint16_t kLargestHalf = 0x7bff;  // 65504
constexpr uint16_t kLargestBf16 = 0x7f7f;

KVE_HD bool is_finite(float value) {
  return (std::bit_cast<uint32_t>(value) & 0x7f800000u) != 0x7f800000u;
}

// No early exit: such a loop would not be vectorised.
KVE_HD bool all_finite(const float* values, int n) {
  uint32_t bad = 0;
  for (int i = 0; i < n; ++i) bad |= static_cast<uint32_t>(!is_finite(values[i]));
  return bad == 0;
}

// An integer that orders finite floats as they order themselves. Compilers vectorise minima and
// maxima of integers, but not of floats.
KVE_HD int32_t ordered(float value) {
  const int32_t bits = std::bit_cast<int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
KVE_HD float from_ordered(int32_t order) {
  return std::bit_cast<float>(order ^ ((order >> 31) & 0x7fffffff));
}
KVE_HD float magnitude_of(float value) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0x7fffffffu);
}

// Nearest binary16, ties to even; what rounds beyond +-65504 (infinity too) becomes +-65504.
KVE_HD uint16_t saturate_to_half(float value) {
  const uint16_t bits = float_to_half(value);
  const uint16_t sign = bits & 0x8000u;
  return (bits & 0x7fffu) == 0x7c00u ? static_cast<uint16_t>(sign | kLargestHalf) : bits;
}

// Ties to even, for |value| <= 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
KVE_HD float round_half_even(float value) {
  constexpr float kShift = 0x1.8p23f;
  return (value + kShift) - kShift;
}

KVE_HD float clamp_to(float value, float low, float high) {
  const float raised = value < low ? low : value;
  return raised > high ? high : raised;
}

// 1 / d, or 0 where that is infinite: such a d is zero in binary16 anyway.
KVE_HD float inverse_or_zero(float d) {
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  return is_finite(inverse) ? inverse : 0.0f;
}

KVE_HD uint16_t read_u16(const std::byte* bytes) {
  uint16_t value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}
KVE_HD void write_u16(std::byte* bytes, uint16_t value) {
  std::memcpy(bytes, &value, sizeof(value));
}

}  // namespace kve
