// exp and log that give the same bits on every machine. Those of the C library differ between
// libraries, and a compiler may or may not contract a * b + c into one rounding; so exp works in
// integers and log asks for its fused operations by name.
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

namespace kve {

static_assert(FLT_EVAL_METHOD == 0, "sampling needs doubles that are rounded after each operation");
#ifdef __FAST_MATH__
#error "sampling relies on infinities and NaN: do not compile it with -ffast-math"
#endif

// exp(x) for x <= 0, within 2^-28 of it relatively; 0 below -690 (a subnormal could be flushed).
// The result has at most 29 significant bits, so its product with a float is exact in a double.
inline double exp_weight(double x) {
  if (!(x > -690.0)) return 0.0;
  // x / ln 2 as fixed point: integer part in the upper, fraction in the lower 32 bits.
  constexpr double kScale = 1.4426950408889634 * 4294967296.0;
  const int64_t fixed = static_cast<int64_t>(x * kScale);
  const int64_t exponent = fixed >> 32;
  const uint64_t fraction = static_cast<uint64_t>(fixed) & 0xffffffffu;
  // 2^f = 1 + f * p(f), with p fitted at the Chebyshev nodes of [0, 1]; coefficients times 2^32.
  uint64_t p = 0x15bd3;
  p = 0x99317 + ((p * fraction) >> 32);
  p = 0x57bf1a + ((p * fraction) >> 32);
  p = 0x2763464 + ((p * fraction) >> 32);
  p = 0xe3589f8 + ((p * fraction) >> 32);
  p = 0x3d7f7ba6 + ((p * fraction) >> 32);
  p = 0xb17217f9 + ((p * fraction) >> 32);
  const uint64_t mantissa = (p * fraction) >> 36;  // 28 bits behind the point
  return std::bit_cast<double>((static_cast<uint64_t>(1023 + exponent) << 52) + (mantissa << 24));
}

// log(x) for finite x >= 1, to a few units in the last place.
inline double log_weight(double x) {
  constexpr double kLn2 = 0.6931471805599453;
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xfffffffffffffu) | (uint64_t{1023} << 52));
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  // log(m) = 2 atanh(s) = 2 s (1 + s^2/3 + s^4/5 + ...), |s| < 0.172
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  double sum = 0.0;
  for (int odd = 23; odd >= 1; odd -= 2) sum = std::fma(sum, s2, 1.0 / odd);
  return std::fma(static_cast<double>(exponent), kLn2, 2.0 * s * sum);
}

}  // namespace kve
