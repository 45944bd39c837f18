// Functions of F32 vectors, accurate to a few units in the last place where not said otherwise. The
// coefficients are weighted least-maximum fits computed for this file.
#pragma once

#include "simd/simd.h"

namespace kve::KVE_ISA {

// Below -103.97 the result rounds to 0; above 88.72 it is infinite. NaN stays NaN.
static inline F32 exp(F32 x) {
  x = min(set(89.0f), max(set(-104.0f), x));
  const F32 n = round_even(x * set(1.44269504f));
  // ln 2 in two parts: n times the first, which has few bits, is exact.
  F32 r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  F32 p = set(1.381446476e-3f);
  p = fma(p, r, set(8.368780622e-3f));
  p = fma(p, r, set(4.166839426e-2f));
  p = fma(p, r, set(1.666652011e-1f));
  p = fma(p, r, set(4.999999341e-1f));
  p = fma(p, r * r, r) + set(1.0f);
  return scale_pow2(p, n);
}

// 2^x for x <= 127, 0 below -126 or less, 1.4e-7 relative, exact for whole x. NaN stays NaN.
static inline F32 exp2(F32 x) {
  x = max(set(kExp2Least), x);
  const F32 r = fraction(x);
  F32 p = set(1.867130074e-3f);
  p = fma(p, r, set(9.017030311e-3f));
  p = fma(p, r, set(5.579991312e-2f));
  p = fma(p, r, set(2.401644502e-1f));
  p = fma(p, r, set(6.931513118e-1f));
  p = fma(p, r, set(1.0f));
  return scale_floor(p, x);
}

// The same to 7.5e-5 relative, a fraction of bf16's rounding.
static inline F32 exp2_rough(F32 x) {
  x = max(set(kExp2Least), x);
  const F32 r = fraction(x);
  F32 p = set(7.802452118e-2f);
  p = fma(p, r, set(2.260671575e-1f));
  p = fma(p, r, set(6.958335398e-1f));
  p = fma(p, r, set(9.999252186e-1f));
  return scale_floor(p, x);
}

static inline F32 negate(F32 x) { return zero() - x; }
static inline F32 copy_sign(F32 magnitude, F32 sign) {
  return select(less(sign, zero()), negate(magnitude), magnitude);
}

static inline F32 tanh(F32 x) {
  const F32 a = abs(x);
  const F32 z = x * x;
  F32 p = set(-5.721629894e-3f);
  p = fma(p, z, set(2.065521841e-2f));
  p = fma(p, z, set(-5.374514459e-2f));
  p = fma(p, z, set(1.333151517e-1f));
  p = fma(p, z, set(-3.333328508e-1f));
  const F32 small = fma(p * z, x, x);
  const F32 large = set(1.0f) - set(2.0f) / (exp(a + a) + set(1.0f));
  return select(less(a, set(0.625f)), small, copy_sign(large, x));
}

static inline F32 sigmoid(F32 x) { return set(1.0f) / (set(1.0f) + exp(negate(x))); }
static inline F32 silu(F32 x) { return x / (set(1.0f) + exp(negate(x))); }

// 0.5 x (1 + tanh(u)) = x sigmoid(2 u), which does not cancel for negative x. The slope is 2 u.
static inline F32 gelu_tanh_slope(F32 x) {
  const F32 u = set(0.79788456f) * x * fma(set(0.044715f), x * x, set(1.0f));
  return u + u;
}
static inline F32 gelu_tanh(F32 x) { return x * sigmoid(gelu_tanh_slope(x)); }

// erfc(a) for a >= 1: t P(t) exp(-a^2) with t = 1 / (1 + a / 2); fitted up to 10, where it is
// 2e-45.
static inline F32 erfc_tail(F32 a) {
  const F32 t = set(1.0f) / fma(set(0.5f), a, set(1.0f));
  F32 p = set(-3.987580313e-2f);
  p = fma(p, t, set(2.252959849e-1f));
  p = fma(p, t, set(-4.118417698e-1f));
  p = fma(p, t, set(2.275231825e-1f));
  p = fma(p, t, set(-7.703748326e-3f));
  p = fma(p, t, set(1.989310059e-1f));
  p = fma(p, t, set(2.433963894e-1f));
  p = fma(p, t, set(2.823876986e-1f));
  p = fma(p, t, set(2.820840822e-1f));
  return p * t * exp(negate(a * a));
}

static inline F32 gelu_erf(F32 x) {
  const F32 a = x * set(0.70710678f);
  const F32 z = a * a;
  F32 p = set(-9.680129037e-6f);
  p = fma(p, z, set(1.127054187e-4f));
  p = fma(p, z, set(-8.484711081e-4f));
  p = fma(p, z, set(5.221074852e-3f));
  p = fma(p, z, set(-2.686544581e-2f));
  p = fma(p, z, set(1.128378275e-1f));
  p = fma(p, z, set(-3.761263848e-1f));
  p = fma(p, z, set(1.128379167e+0f));
  const F32 tail = erfc_tail(abs(a));
  const F32 tail_sum = select(less(a, zero()), tail, set(2.0f) - tail);
  const F32 one_plus_erf = select(less(abs(a), set(1.0f)), fma(p, a, set(1.0f)), tail_sum);
  return set(0.5f) * x * one_plus_erf;
}

}  // namespace kve::KVE_ISA
