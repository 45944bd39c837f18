// AArch64 NEON: 4 lanes, 32 registers. Compiled twice: `neon` for every AArch64 processor and
// `dotprod` for those with the int8 dot product (Armv8.2-A's optional SDOT). Conversion of binary16
// belongs to the baseline.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

namespace kve::KVE_ISA {

constexpr int kLanes = 4;
constexpr int kDotBias = 0;
// In matmat 6 x 2 sums of int32, as many of f32, 2 rows, an input and the temporaries of dot4 fill
// the registers; in gemm 6 x 4 sums, 4 rows and an input do; in attention 4 x 4 sums, 4 rows and a
// query need 21.
constexpr int kVecInputs = 8;
constexpr int kMatTokens = 6;
constexpr int kMatVectors = 2;
constexpr int kGemmTokens = 6;
constexpr int kGemmVectors = 4;
constexpr int kRowVectors = 4;
constexpr float kExp2Least = -127.0f;

struct F32 {
  float32x4_t v;
};
struct I32 {
  int32x4_t v;
};
struct Mask {
  uint32x4_t v;
};

static inline F32 load(const float* p) { return {vld1q_f32(p)}; }
static inline F32 load_n(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  float32x4_t r = vdupq_n_f32(0.0f);
  if (n >= 1) r = vld1q_lane_f32(p, r, 0);
  if (n >= 2) r = vld1q_lane_f32(p + 1, r, 1);
  if (n >= 3) r = vld1q_lane_f32(p + 2, r, 2);
  return {r};
}
static inline void store(float* p, F32 a) { vst1q_f32(p, a.v); }
static inline void store_n(float* p, F32 a, int64_t n) {
  if (n >= kLanes) return store(p, a);
  if (n >= 1) vst1q_lane_f32(p, a.v, 0);
  if (n >= 2) vst1q_lane_f32(p + 1, a.v, 1);
  if (n >= 3) vst1q_lane_f32(p + 2, a.v, 2);
}
static inline F32 set(float x) { return {vdupq_n_f32(x)}; }
static inline F32 zero() { return {vdupq_n_f32(0.0f)}; }
static inline float one_half(const void* p) {
  float16_t number;
  __builtin_memcpy(&number, p, sizeof(number));
  return static_cast<float>(number);
}
// The first n numbers; nothing past them is touched, as it may lie outside the page.
static inline uint16x4_t load_u16_n(const uint16_t* p, int64_t n) {
  if (n >= kLanes) return vld1_u16(p);
  uint16x4_t r = vdup_n_u16(0);
  if (n >= 1) r = vld1_lane_u16(p, r, 0);
  if (n >= 2) r = vld1_lane_u16(p + 1, r, 1);
  if (n >= 3) r = vld1_lane_u16(p + 2, r, 2);
  return r;
}
static inline F32 from_f16(uint16x4_t bits) { return {vcvt_f32_f16(vreinterpret_f16_u16(bits))}; }
static inline F32 from_bf16(uint16x4_t bits) {
  return {vreinterpretq_f32_u32(vshll_n_u16(bits, 16))};
}
static inline F32 load_f16(const uint16_t* p) { return from_f16(vld1_u16(p)); }
static inline F32 load_bf16(const uint16_t* p) { return from_bf16(vld1_u16(p)); }
static inline F32 load_f16_n(const uint16_t* p, int64_t n) { return from_f16(load_u16_n(p, n)); }
static inline F32 load_bf16_n(const uint16_t* p, int64_t n) { return from_bf16(load_u16_n(p, n)); }

// Four bytes in the low half of 64 bits.
static inline uint8x8_t load_four(const void* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return vreinterpret_u8_u32(vdup_n_u32(word));
}
static inline F32 load_u8(const uint8_t* p) {
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_four(p)))))};
}
static inline F32 load_i8(const int8_t* p) {
  const int8x8_t bytes = vreinterpret_s8_u8(load_four(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))};
}

static inline F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
static inline F32 operator-(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
static inline F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
static inline F32 operator/(F32 a, F32 b) { return {vdivq_f32(a.v, b.v)}; }
static inline F32 fma(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
static inline Mask less(F32 a, F32 b) { return {vcltq_f32(a.v, b.v)}; }
static inline F32 select(Mask m, F32 yes, F32 no) { return {vbslq_f32(m.v, yes.v, no.v)}; }
// Not FMAX and FMIN, which do not give b for every NaN (see simd.h).
static inline F32 max(F32 a, F32 b) { return select(less(b, a), a, b); }
static inline F32 min(F32 a, F32 b) { return select(less(a, b), a, b); }
static inline F32 abs(F32 a) { return {vabsq_f32(a.v)}; }
static inline F32 round_even(F32 a) { return {vrndnq_f32(a.v)}; }
static inline F32 scale_pow2(F32 a, F32 n) {
  // In two steps, so that neither factor leaves the range of normal floats for |n| <= 250.
  const int32x4_t whole = vcvtnq_s32_f32(n.v);
  const int32x4_t first = vshrq_n_s32(whole, 1);
  const auto pow2 = [](int32x4_t e) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23));
  };
  return {vmulq_f32(vmulq_f32(a.v, pow2(first)), pow2(vsubq_s32(whole, first)))};
}
static inline bool any(Mask m) { return vmaxvq_u32(m.v) != 0; }
static inline F32 fraction(F32 a) { return {vsubq_f32(a.v, vrndmq_f32(a.v))}; }
static inline F32 scale_floor(F32 p, F32 a) {
  const int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtmq_s32_f32(a.v), vdupq_n_s32(127)), 23);
  return {vmulq_f32(p.v, vreinterpretq_f32_s32(bits))};
}
static inline F32 block_sums(F32 a, F32 b, F32 c, F32 d) {
  return {vpaddq_f32(vpaddq_f32(a.v, b.v), vpaddq_f32(c.v, d.v))};
}
static inline F32 join_sums(const F32 (&s)[1]) { return s[0]; }
static inline float sum(F32 a) { return vaddvq_f32(a.v); }
static inline float max_of(F32 a) { return vmaxvq_f32(a.v); }

static inline int8x16_t as_bytes(I32 a) { return vreinterpretq_s8_s32(a.v); }
static inline I32 from_bytes(int8x16_t bytes) { return {vreinterpretq_s32_s8(bytes)}; }

static inline I32 load_i32(const void* p) {
  return from_bytes(vld1q_s8(static_cast<const int8_t*>(p)));
}
static inline void store_i32(void* p, I32 a) { vst1q_s8(static_cast<int8_t*>(p), as_bytes(a)); }
static inline I32 set_i32(int32_t x) { return {vdupq_n_s32(x)}; }
// The four bytes at p in every lane.
static inline I32 broadcast_i32(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return {vdupq_n_s32(word)};
}
static inline F32 to_f32(I32 a) { return {vcvtq_f32_s32(a.v)}; }
static inline I32 to_i32(F32 a) { return {vcvtnq_s32_f32(a.v)}; }
// The low bytes of the lanes.
static inline void store_i8(int8_t* p, I32 a) {
  const int16x4_t words = vmovn_s32(a.v);
  const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
  const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
  __builtin_memcpy(p, &four, sizeof(four));
}
// The low bytes of the lanes of a, then of b, c and d.
static inline I32 pack_i8(I32 a, I32 b, I32 c, I32 d) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.v), vmovn_s32(b.v));
  const int16x8_t high = vcombine_s16(vmovn_s32(c.v), vmovn_s32(d.v));
  return from_bytes(vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
static inline I32 widen_u8(const uint8_t* p) {
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_four(p)))))};
}
static inline I32 widen_u8_n(const uint8_t* p, int64_t n) {
  uint8_t bytes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) bytes[i] = p[i];
  return widen_u8(bytes);
}
static inline F32 as_f32(I32 bits) { return {vreinterpretq_f32_s32(bits.v)}; }
static inline int32_t sum(I32 a) { return vaddvq_s32(a.v); }

static inline I32 operator+(I32 a, I32 b) { return {vaddq_s32(a.v, b.v)}; }
static inline I32 operator-(I32 a, I32 b) { return {vsubq_s32(a.v, b.v)}; }
static inline I32 operator&(I32 a, I32 b) { return {vandq_s32(a.v, b.v)}; }
static inline I32 operator|(I32 a, I32 b) { return {vorrq_s32(a.v, b.v)}; }
// The compiler's own operators turn constant counts into immediates; the intrinsics do not.
static inline uint32x4_t as_unsigned(I32 a) { return vreinterpretq_u32_s32(a.v); }
static inline I32 shift_right(I32 a, int n) {
  return {vreinterpretq_s32_u32(as_unsigned(a) >> vdupq_n_u32(static_cast<uint32_t>(n)))};
}
static inline I32 shift_left(I32 a, int n) {
  return {vreinterpretq_s32_u32(as_unsigned(a) << vdupq_n_u32(static_cast<uint32_t>(n)))};
}
static inline I32 set_bytes(int8_t x) { return from_bytes(vdupq_n_s8(x)); }
static inline I32 add_bytes(I32 a, I32 b) { return from_bytes(vaddq_s8(as_bytes(a), as_bytes(b))); }
static inline I32 lookup_bytes(const int8_t* table, I32 index) {
  return from_bytes(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_s32(index.v)));
}

static inline I32 dot4(I32 acc, I32 w, I32 x) {
#if defined(__ARM_FEATURE_DOTPROD)
  return {vdotq_s32(acc.v, as_bytes(w), as_bytes(x))};
#else
  // |w| <= 128 and |x| <= 127, so a pair of products fits in 16 bits.
  const int16x8_t low = vmull_s8(vget_low_s8(as_bytes(w)), vget_low_s8(as_bytes(x)));
  const int16x8_t high = vmull_high_s8(as_bytes(w), as_bytes(x));
  return {vpadalq_s16(acc.v, vpaddq_s16(low, high))};
#endif
}
static inline I32 dot4_small(I32 acc, I32 w, I32 x) { return dot4(acc, w, x); }
// 32 signed codes as dot4 wants them: as they are.
static inline void dot_bytes(int8_t* /*codes*/) {}

// The sums of codes 0-15 and 16-31.
static inline void code_sums(const int8_t* codes, int32_t (&sums)[2]) {
  sums[0] = vaddlvq_s8(vld1q_s8(codes));
  sums[1] = vaddlvq_s8(vld1q_s8(codes + 16));
}

static inline void transpose(F32 (&r)[4]) {
  const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(r[0].v, r[1].v));
  const float64x2_t odd01 = vreinterpretq_f64_f32(vtrn2q_f32(r[0].v, r[1].v));
  const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(r[2].v, r[3].v));
  const float64x2_t odd23 = vreinterpretq_f64_f32(vtrn2q_f32(r[2].v, r[3].v));
  r[0].v = vreinterpretq_f32_f64(vtrn1q_f64(even01, even23));
  r[1].v = vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23));
  r[2].v = vreinterpretq_f32_f64(vtrn2q_f64(even01, even23));
  r[3].v = vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23));
}

struct GroupAcc {
  float32x4_t v;
};
static inline GroupAcc group_zero() { return {vdupq_n_f32(0.0f)}; }
static inline GroupAcc group_dot(GroupAcc acc, const int8_t* w, const int8_t* x, float scale0,
                                 float scale1) {
  const I32 none = set_i32(0);
  const F32 dot0 = to_f32(dot4(none, load_i32(w), load_i32(x)));
  const F32 dot1 = to_f32(dot4(none, load_i32(w + 16), load_i32(x + 16)));
  return {vfmaq_n_f32(vfmaq_n_f32(acc.v, dot0.v, scale0), dot1.v, scale1)};
}
static inline float sum(GroupAcc a) { return vaddvq_f32(a.v); }

}  // namespace kve::KVE_ISA
