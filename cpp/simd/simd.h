// simd/ is the vector layer that per-ISA kernels are written against: one header per instruction
// set with the same names, all in namespace kve::KVE_ISA with internal linkage. A kernel source is
// compiled once per set; it never names an intrinsic unless it is a variant for one set.
//
//   F32, I32         kLanes floats or int32s; + - * / and the functions below
//   Mask             one truth value per lane
//   load, store      kLanes values (unaligned); load_n, store_n: the first n, the rest is zero
//   set, zero        all lanes alike
//   load_f16/_bf16/_u8/_i8   kLanes numbers of another type as F32; load_f16_n, load_bf16_n
//   fma(a, b, c)     a * b + c; max, min, abs, sum, max_of; less, select, either
//   max_abs(a, b)    max(abs(a), b) where b has no sign
//   max(a, b)        gives b when either is NaN, as x86 does
//   round_even, scale_pow2(x, n)   x * 2^n for whole n, without overflow in between
//   fraction(a)      a - floor(a); scale_floor(p, a) = p * 2^floor(a) for kExp2Least <= a < 128,
//                    which is 0 at kExp2Least
//   block_sums(a, b, c, d)   lane 4 j + i: the sum of lanes 4 j ... 4 j + 3 of the i-th argument
//   join_sums(s)     of kLanes / 4 such vectors, lane 4 k + i: the whole sum of lane i of the k-th
//   sum_of_each(v, to)   the sums of the lanes of several vectors, with AVX-512 of four at a time;
//                    max_of_each: the largest lanes
//   transpose(rows)  kLanes x kLanes values of 32 bits, in place
//   dot4(acc, w, x)  acc + the dot product of the 4 bytes of each lane; w holds weight codes as
//                    `dot_bytes` writes them, biased by kDotBias, x signed codes in [-127, 127]
//   dot4_small       the same for unsigned weight codes below 128, without bias
//   broadcast_i32(p) the same four bytes in every lane
//   & | shift_left, shift_right   on the 32-bit lanes of I32
//   widen_u8(p)      kLanes bytes as lanes; widen_u8_n(p, n): n of them, 0 in the rest
//   as_f32(bits)     lanes as the bits of floats
//   pack_i8(a, b, c, d)   the low bytes of the lanes of four vectors, in order
//   set_bytes, add_bytes, lookup_bytes(table, i)   on the bytes of I32; table has 16, i is below 16
//   code_sums        sums of 2 x 16 int8 codes
//   group_dot        a group of 32 int8 codes times 32 activations, one scale per 16
//
//   one_half(p)      one binary16 number as float
//
// Where KVE_SIX_SUMS is defined:
//   six_code_sums    code_sums of six rows of 32 codes, in the first six lanes
//
// Where KVE_BF16_DOT is defined, lanes may also hold pairs of bf16 numbers:
//   dot2(acc, a, b)  acc + the dot product of the two bf16 numbers of each lane
//   store_bf16       kLanes or 2 * kLanes numbers, rounded to nearest, ties to even; denormals
//                    become 0
//   pair_bf16(a, b)  lanes of pairs, a in the low half
//   interleave16     lanes of two rows of 16-bit numbers, the first in the low half
//
// kVecInputs, kMatTokens, kMatVectors, kGemmTokens, kGemmVectors and kRowVectors are the register
// tiles that suit the set.
#pragma once

#include <stdint.h>

#if defined(KVE_ISA_AVX512)
#include "simd/avx512.h"
#elif defined(KVE_ISA_AVX2)
#include "simd/avx2.h"
#elif defined(KVE_ISA_NEON) || defined(KVE_ISA_DOTPROD)
#include "simd/neon.h"
#else
#include "simd/scalar.h"
#endif

// Before a loop over registers: it has to be unrolled for them to be registers. Not where lanes are
// loops themselves, which would be a megabyte of code and minutes of compiling.
#if defined(KVE_ISA_SCALAR)
#define KVE_UNROLL(n)
#else
#define KVE_PRAGMA(text) _Pragma(#text)
#define KVE_UNROLL(n) KVE_PRAGMA(GCC unroll n)
#endif

namespace kve::KVE_ISA {

#if !defined(KVE_MAX_ABS)
static inline F32 max_abs(F32 a, F32 b) { return max(abs(a), b); }
#endif

// As for four vectors at a time, where a set has that.
static inline void sum_of_each(const F32 (&v)[1], float* to) { to[0] = sum(v[0]); }
static inline void max_of_each(const F32 (&v)[1], float* to) { to[0] = max_of(v[0]); }

// Asks for a line that will be read soon, from the second cache.
static inline void prefetch_shared(const void* p) { __builtin_prefetch(p, 0, 2); }
// Asks for a line of a stream that is read once. Past the second cache on AMD's processors, whose
// set this is (cpu_features.cpp): twice as fast there. Intel's then wait for the few lines that
// the first cache may await at a time: half as fast, from memory and from the third cache.
// From there, streams are asked for once more, kNearBytes ahead of their use: of 1.1B models one
// thread then reads 6 to 11 % faster, two 5 to 10 %. Distances of 2 to 4 KB are alike.
#if defined(KVE_BF16_DOT)
static inline void prefetch_once(const void* p) { __builtin_prefetch(p, 0, 0); }
constexpr int64_t kNearBytes = 0;
#else
static inline void prefetch_once(const void* p) { prefetch_shared(p); }
constexpr int64_t kNearBytes = 3072;
#endif
static inline void prefetch_near(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace kve::KVE_ISA
