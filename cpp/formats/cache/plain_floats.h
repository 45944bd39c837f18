// Rows of plain floats: binary32, and binary16 and bfloat16 nearest to them, ties to even. Finite
// values beyond what a format holds saturate.
#pragma once

#include "formats/cache/codec_math.h"

namespace kve {

KVE_HD uint16_t saturate_to_bf16(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t rounded = ((bits & 0x7fffffffu) + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t magnitude = rounded < kLargestBf16 ? rounded : uint32_t{kLargestBf16};
  return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | magnitude);
}

// Rows of floats to numbers of two bytes; false when a value is NaN or infinite.
KVE_HD bool halves_of(const float* from, int n, std::byte* to) {
  for (int i = 0; i < n; ++i) write_u16(to + 2 * i, saturate_to_half(from[i]));
  return all_finite(from, n);
}
KVE_HD bool bfloats_of(const float* from, int n, std::byte* to) {
  for (int i = 0; i < n; ++i) write_u16(to + 2 * i, saturate_to_bf16(from[i]));
  return all_finite(from, n);
}

// half_to_float without branches. Infinities and NaN of damaged pages stay what they are.
KVE_HD void read_halves(const std::byte* from, int n, float* to) {
  for (int i = 0; i < n; ++i) {
    const uint32_t stored = read_u16(from + 2 * i);
    const float magnitude = float_from_bits((stored & 0x7fffu) << 13) * 0x1p112f;
    const uint32_t special = (stored & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    to[i] = float_from_bits(bits_of_float(magnitude) | special | (stored & 0x8000u) << 16);
  }
}
KVE_HD void read_bfloats(const std::byte* from, int n, float* to) {
  for (int i = 0; i < n; ++i) to[i] = bf16_to_float(read_u16(from + 2 * i));
}

}  // namespace kve
