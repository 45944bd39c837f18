// IEEE 754 binary16 and bfloat16 as storage types, converted in portable integer arithmetic.
// Vector code converts whole rows with simd.h; these are the definition it is tested against.
#pragma once

#include <bit>
#include <cstdint>

#include "base/portable.h"

namespace kve {

// The bits of a binary16 number.
struct half {
  uint16_t bits = 0;
};
// The upper 16 bits of a binary32 number.
struct bfloat16 {
  uint16_t bits = 0;
};

// Not std::bit_cast: a debug build emits its instances as weak symbols (see base/portable.h).
KVE_HD constexpr float float_from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
KVE_HD constexpr uint32_t bits_of_float(float value) { return __builtin_bit_cast(uint32_t, value); }

// Exact; subnormals, infinities and NaN payloads are kept.
KVE_HD constexpr float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0x1f) return float_from_bits(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24, exact in binary32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return float_from_bits(sign | bits_of_float(magnitude));
}

// Round to nearest even; overflow becomes infinity, NaN stays a (quiet) NaN.
KVE_HD constexpr uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u)
    return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 2^16 or more
  if (magnitude < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 aligns the result's unit with the float's last bit
    // (2^-24), so the hardware's own rounding does the work.
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

KVE_HD constexpr float bf16_to_float(uint16_t b) {
  return float_from_bits(static_cast<uint32_t>(b) << 16);
}

// Round to nearest even; NaN stays a quiet NaN.
KVE_HD constexpr uint16_t float_to_bf16(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 64u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

KVE_HD constexpr float to_float(half h) { return half_to_float(h.bits); }
KVE_HD constexpr float to_float(bfloat16 b) { return bf16_to_float(b.bits); }

}  // namespace kve
