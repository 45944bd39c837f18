// Arithmetic that the cache codecs share.
//
// Encoders and decoders are compiled without floating-point contraction: a fused multiply-add may
// round a code the other way.
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

KVE_HD bool is_finite(float value) { return (bits_of_float(value) & 0x7f800000u) != 0x7f800000u; }

// No early exit: such a loop would not be vectorised.
KVE_HD bool all_finite(const float* values, int n) {
  uint32_t bad = 0;
  for (int i = 0; i < n; ++i) bad |= static_cast<uint32_t>(!is_finite(values[i]));
  return bad == 0;
}

// Nearest binary16 of a finite value, ties to even; what rounds beyond +-65504 becomes +-65504. The
// same as float_to_half, without branches.
KVE_HD uint16_t saturate_to_half(float value) {
  const uint32_t sign = (bits_of_float(value) >> 16) & 0x8000u;
  const uint32_t absolute = bits_of_float(value) & 0x7fffffffu;
  const auto bits = static_cast<int32_t>(absolute);  // old instruction sets compare signed numbers
  const int32_t normal = (bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13;
  // Below the smallest normal half, where 0.5 aligns the last bit with the units of 2^-24.
  const float shifted = float_from_bits(absolute) + 0.5f;
  const int32_t subnormal = static_cast<int32_t>(bits_of_float(shifted)) - 0x3f000000;
  const int32_t magnitude = bits < 0x38800000 ? subnormal : normal;
  const int32_t limited = magnitude < kLargestHalf ? magnitude : kLargestHalf;
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(limited));
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
