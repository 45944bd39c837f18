// Folding: queries or weights times the scales of a page, rounded to int8.
#pragma once

#include "kernels/cpu/isa/strip_round.h"

namespace kve::KVE_ISA {

// Vectors that are folded together, as far as there are registers for them: they share the loads of
// the parameters, and their horizontal steps, which take as many slots.
constexpr int64_t kFoldedTogether = kLanes == 16 ? 4 : 1;
template <int kItems>
constexpr int kFoldSlots = kItems == 1 ? 1 : 4;

namespace {

// What is folded: vectors of n values (a multiple of kLanes), `stride` apart, times `scale`.
struct FoldInput {
  int64_t n;
  const float* values;
  int64_t stride;
  const float* scale;
  const float* zeros;
  const float* strip_bias;
};
// Where their codes go: those of vectors `stride` apart, planes round_up(n, 4 * kLanes).
struct FoldedCodes {
  int8_t* codes;
  int64_t stride;
  int64_t plane_stride;
};
// Between the steps, of all pages of a run, so that the chains of operations of one page are short
// enough to overlap with those of the next.
template <int kWidth, int kItems>
struct FoldWork {
  static constexpr int64_t kSlots = kFoldSlots<kItems>;
  static constexpr int64_t kAll = (kRunPages * kSlots + kLanes - 1) / kLanes * kLanes;
  float top[kAll] = {};  // [kRunPages][kSlots], of the products
  float unit[kAll];      // of the codes
  float inverse[kAll];
  // Of each page and vector. Rows whose width is not known are multiplied a second time instead.
  alignas(64) float products[kWidth != 0 ? kRunPages * kItems * kWidth : 1];
};

}  // namespace

// The products of kItems vectors of page p. kWidth: their values, unless it is 0.
template <int kWidth, int kItems>
__attribute__((always_inline)) static inline void multiply_fold(const FoldInput& in, int32_t p,
                                                                FoldWork<kWidth, kItems>* work) {
  const int64_t n = kWidth != 0 ? kWidth : in.n;
  float* products = work->products + p * kItems * kWidth;
  F32 largest[kFoldSlots<kItems>];
#pragma GCC unroll 4
  for (F32& of_slot : largest) of_slot = zero();
#pragma GCC unroll 4
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 scale = load(in.scale + i);
#pragma GCC unroll 4
    for (int k = 0; k < kItems; ++k) {
      const F32 product = load(in.values + k * in.stride + i) * scale;
      if constexpr (kWidth != 0) store(products + k * kWidth + i, product);
      largest[k] = max_abs(product, largest[k]);
    }
  }
  max_of_each(largest, work->top + p * kFoldSlots<kItems>);
}

// Units of codes up to 127; 0 where the inverse could overflow.
template <int kWidth, int kItems>
static inline void fold_units(FoldWork<kWidth, kItems>* work) {
  for (int64_t i = 0; i < FoldWork<kWidth, kItems>::kAll; i += kLanes) {
    const F32 top = load(work->top + i);
    const Mask large = less(set(1e-30f), top);
    store(work->unit + i, select(large, top * set(1.0f / 127.0f), zero()));
    store(work->inverse + i, select(large, set(127.0f) / top, zero()));
  }
}

// Codes of kItems vectors of page p: product ~ unit * (code + remainder / kPlaneRatio). Sets
// rest[i] to lanes whose sum is what the integer products leave out: values times `zeros` (kRest),
// less what the biases of the codes add.
template <int kWidth, int kPlanes, bool kRest, int kItems>
__attribute__((always_inline)) static inline void fold(const FoldInput& in, int32_t p,
                                                       const FoldWork<kWidth, kItems>& work,
                                                       const FoldedCodes& out, F32* rest) {
  const int64_t n = kWidth != 0 ? kWidth : in.n;
  const I32 ones = set_bytes(1);
#pragma GCC unroll 4
  for (int k = 0; k < kItems; ++k) {
    const float* values = in.values + k * in.stride;
    int8_t* codes = out.codes + k * out.stride;
    const float* products = work.products + (p * kItems + k) * kWidth;
    const int64_t slot = p * kFoldSlots<kItems> + k;
    const F32 inverse = set(work.inverse[slot]);
    F32 biased = zero();
    F32 total = zero();
#pragma GCC unroll 4
    for (int64_t i = 0; i < n; i += 4 * kLanes) {
      I32 whole[4];
      I32 remainders[4];
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const int64_t at = i + c * kLanes;
        whole[c] = remainders[c] = set_i32(0);
        if (at >= n) continue;
        const F32 value = load(values + at);
        const F32 product = kWidth != 0 ? load(products + at) : value * load(in.scale + at);
        total = kRest ? fma(value, load(in.zeros + at), total) : total + product;
        const F32 scaled = product * inverse;
        whole[c] = to_i32(scaled);
        if constexpr (kPlanes == 2) {
          remainders[c] = to_i32((scaled - to_f32(whole[c])) * set(kPlaneRatio));
        }
      }
      const I32 packed = pack_i8(whole[0], whole[1], whole[2], whole[3]);
      store_i32(codes + i, packed);
      F32 sums = to_f32(dot4_small(set_i32(0), ones, packed));
      if constexpr (kPlanes == 2) {
        const I32 more = pack_i8(remainders[0], remainders[1], remainders[2], remainders[3]);
        store_i32(codes + out.plane_stride + i, more);
        sums = fma(to_f32(dot4_small(set_i32(0), ones, more)), set(1.0f / kPlaneRatio), sums);
      }
      biased = fma(sums, load(in.strip_bias + i / 4), biased);
    }
    if constexpr (!kRest) total = total * zero();  // 0, or NaN where a value is
    rest[k] = fma(biased, set(-work.unit[slot]), total);
  }
}

// Calls use(Items<kItems>(), first) for n vectors, as many at a time as are folded together.
template <int kItems>
struct Items {};
template <int64_t kMost, class Use>
__attribute__((always_inline)) static inline void for_items(int64_t n, const Use& use) {
  for (int64_t first = 0; first < n; first += kMost) {
    const int64_t now = least(n - first, kMost);
    if constexpr (kMost >= 4) {
      if (now == 4) use(Items<4>(), first);
      if (now == 3) use(Items<3>(), first);
      if (now == 2) use(Items<2>(), first);
    }
    if (now == 1) use(Items<1>(), first);
  }
}

}  // namespace kve::KVE_ISA
