// Many inputs against quantized weights. A slice of rows is unpacked once (slice.h) and multiplied
// with all inputs, which are broadcast 4 values at a time. No horizontal sums, no shuffles in the
// inner loop.
#include <string.h>

#include "kernels/cpu/isa/pack.h"
#include "kernels/cpu/isa/slice.h"

namespace kve::KVE_ISA {

size_t matmat_scratch(int64_t cols, int64_t /*n_inputs*/) { return Slice(nullptr, cols).size; }

// Of types with minima: whether these are multiplied as words, by begin_with_minima.
template <int kParts>
constexpr bool kWords = kWordMinima && kParts == 1;

#if defined(KVE_WORD_MINIMA)
// The minima of a slice times the sums of a pack.
static inline __attribute__((always_inline)) void begin_with_minima(
    const Slice& slice, const Pack& x, F32 (&total)[kMatVectors][kMatTokens]) {
  I32 dot[kMatVectors][kMatTokens];
  KVE_UNROLL(2)
  for (int v = 0; v < kMatVectors; ++v) {
    KVE_UNROLL(8)
    for (int t = 0; t < kMatTokens; ++t) dot[v][t] = set_i32(0);
  }
  const int64_t n = (x.n_groups + 1) / 2;
  for (int64_t pair = 0; pair < n; ++pair) {
    I32 rows[kMatVectors];
    KVE_UNROLL(2)
    for (int v = 0; v < kMatVectors; ++v) {
      rows[v] = load_i32(slice.minimum_words + pair * kSliceRows + v * kLanes);
    }
    KVE_UNROLL(8)
    for (int t = 0; t < kMatTokens; ++t) {
      const I32 sums = set_i32(x.sum_words[pair * kMatTokens + t]);
      KVE_UNROLL(2)
      for (int v = 0; v < kMatVectors; ++v) dot[v][t] = dot2_words(dot[v][t], rows[v], sums);
    }
  }
  KVE_UNROLL(2)
  for (int v = 0; v < kMatVectors; ++v) {
    const F32 units = load(slice.minimum_units + v * kLanes);
    KVE_UNROLL(8)
    for (int t = 0; t < kMatTokens; ++t) {
      total[v][t] = to_f32(dot[v][t]) * units * set(x.sum_units[t]);
    }
  }
}
#endif

// y[t][row] of one slice and one pack, plus bias[row]. kParts: scales per 32 values. Not inlined:
// see gemm.cpp.
template <int kParts, bool kMin, Sums kSums>
__attribute__((noinline)) static void multiply(const Slice& slice, const Pack& x, const float* bias,
                                               float* y, int64_t y_stride) {
  F32 total[kMatVectors][kMatTokens];
  KVE_UNROLL(2)
  for (int v = 0; v < kMatVectors; ++v) {
    KVE_UNROLL(8)
    for (int t = 0; t < kMatTokens; ++t) total[v][t] = zero();
  }
#if defined(KVE_WORD_MINIMA)
  if constexpr (kMin && kWords<kParts>) begin_with_minima(slice, x, total);
#endif
  // Lines of y lie pages apart: stores that wait for them would hold up what follows.
  for (int t = 0; t < kMatTokens; ++t) {
    for (int v = 0; v < kMatVectors; ++v) __builtin_prefetch(y + t * y_stride + v * kLanes, 1);
  }
  const int32_t* start = kParts == 2 ? x.start16 : x.start32;
  const float* input_sums = kParts == 2 ? x.sums16 : x.sums32;
  const int64_t n_parts = int64_t{*x.n_entries} * kParts;
  for (int64_t p = 0; p < n_parts; ++p) {
    const int64_t group = int64_t{x.groups[p / kParts]} * kParts + p % kParts;
    const int8_t* w = slice.codes + group * (32 / kParts) * kSliceRows;
    const int32_t* codes = x.codes + p / kParts * kMatTokens * 8 + p % kParts * 4;
    I32 dot[kMatVectors][kMatTokens];
    KVE_UNROLL(8)
    for (int t = 0; t < kMatTokens; ++t) {
      const I32 s = set_i32(start[p * kMatTokens + t]);
      KVE_UNROLL(2)
      for (int v = 0; v < kMatVectors; ++v) dot[v][t] = s;
    }
    KVE_UNROLL(1)
    for (int word = 0; word < 8 / kParts; ++word) {
      I32 rows[kMatVectors];
      KVE_UNROLL(2)
      for (int v = 0; v < kMatVectors; ++v) rows[v] = load_i32(w + v * kLanes * 4);
      w += kSliceRows * 4;
      KVE_UNROLL(8)
      for (int t = 0; t < kMatTokens; ++t) {
        const I32 value = set_i32(codes[t * 8]);
        KVE_UNROLL(2)
        for (int v = 0; v < kMatVectors; ++v) dot[v][t] = dot4(dot[v][t], rows[v], value);
      }
      ++codes;
    }
    const float* input_scales = x.scales + p / kParts * kMatTokens;
    KVE_UNROLL(2)
    for (int v = 0; v < kMatVectors; ++v) {
      const int64_t place = group * kSliceRows + v * kLanes;
      const F32 scale = load(slice.scales + place);
      const F32 offset = kSums == Sums::fused ? load(slice.offsets + place) : zero();
      KVE_UNROLL(8)
      for (int t = 0; t < kMatTokens; ++t) {
        total[v][t] =
            fma(scaled<kSums>(dot[v][t], scale, offset), set(input_scales[t]), total[v][t]);
      }
      if (kMin && !kWords<kParts> && p < x.n_groups * kParts) {
        const F32 min = load(slice.minima + place);
        KVE_UNROLL(8)
        for (int t = 0; t < kMatTokens; ++t) {
          total[v][t] = fma(min, set(input_sums[p * kMatTokens + t]), total[v][t]);
        }
      }
    }
  }
  KVE_UNROLL(2)
  for (int v = 0; v < kMatVectors; ++v) {
    const F32 last = bias == nullptr ? zero() : load(bias + v * kLanes);
    KVE_UNROLL(8)
    for (int t = 0; t < kMatTokens; ++t) store(y + t * y_stride + v * kLanes, total[v][t] + last);
  }
}

static void write_out(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                      int64_t first_token, int64_t n_tokens, const float* sums) {
  for (int64_t t = 0; t < n_tokens; ++t) {
    float* y = chunk.y + (first_token + t) * chunk.y_stride + first_row - chunk.y_row;
    for (int64_t r = 0; r < n_rows; r += kLanes) {
      const int64_t n = least(n_rows - r, kLanes);
      F32 total = load(sums + t * kSliceRows + r);
      if (chunk.bias != nullptr) total = total + load_n(chunk.bias + first_row + r, n);
      store_n(y + r, total, n);
    }
  }
}

// One slice with all tokens. Whole blocks of results go straight to y.
template <int kParts, bool kMin, Sums kSums>
static void multiply_packs(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                           const std::byte* packs, const Slice& slice) {
  const size_t bytes = pack_bytes(chunk.cols);
  const float* bias = chunk.bias == nullptr ? nullptr : chunk.bias + first_row;
  alignas(64) float sums[kMatTokens * kSliceRows];
  for (int64_t t = 0; t < chunk.n_tokens; t += kMatTokens, packs += bytes) {
    const Pack pack(const_cast<std::byte*>(packs), chunk.cols);
    if (n_rows == kSliceRows && t + kMatTokens <= chunk.n_tokens) {
      float* y = chunk.y + t * chunk.y_stride + first_row - chunk.y_row;
      multiply<kParts, kMin, kSums>(slice, pack, bias, y, chunk.y_stride);
      continue;
    }
    multiply<kParts, kMin, kSums>(slice, pack, nullptr, sums, kSliceRows);
    write_out(chunk, first_row, n_rows, t, least(chunk.n_tokens - t, kMatTokens), sums);
  }
}

// What takes kFloatStart back from the sums of a slice.
static void place_offsets(int64_t n_scales, const Slice& slice) {
  for (int64_t i = 0; i < n_scales * kSliceRows; i += kLanes) {
    store(slice.offsets + i, load(slice.scales + i) * set(-kFloatStart));
  }
}

// The minima of a slice as words.
static inline void round_minima(int64_t n_groups, const Slice& slice) {
#if defined(KVE_WORD_MINIMA)
  for (int v = 0; v < kMatVectors; ++v) {
    const int place = v * kLanes;
    const F32 units = round_to_words(
        n_groups, [&](int64_t g) { return load(slice.minima + g * kSliceRows + place); },
        [&](int64_t pair, I32 words) {
          store_i32(slice.minimum_words + pair * kSliceRows + place, words);
        });
    store(slice.minimum_units + place, units);
  }
#else
  static_cast<void>(n_groups);
  static_cast<void>(slice);
#endif
}

template <int kParts, bool kMin>
static void multiply_slice(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                           const std::byte* packs, const Slice& slice) {
  if (kMin && kWords<kParts>) round_minima(chunk.cols / 32, slice);
  if constexpr (!kFloatDots) {
    multiply_packs<kParts, kMin, Sums::whole>(chunk, first_row, n_rows, packs, slice);
  } else if (has_offsets(chunk.format->type)) {
    place_offsets(chunk.cols / 32 * kParts, slice);
    multiply_packs<kParts, kMin, Sums::fused>(chunk, first_row, n_rows, packs, slice);
  } else {
    multiply_packs<kParts, kMin, Sums::shifted>(chunk, first_row, n_rows, packs, slice);
  }
}

void matmat(const MatmulChunk& chunk, const std::byte* packs) {
  const Slice slice(chunk.scratch, chunk.cols);
  const bool one = one_scale(chunk.format->type);
  const int64_t end = chunk.first_row + chunk.n_rows;
  for (int64_t r = chunk.first_row; r < end; r += kSliceRows) {
    const int64_t n = least(end - r, kSliceRows);
    unpack_part(chunk, {r, n, 0, chunk.cols / 32}, slice);
    if (chunk.format->has_min) {
      if (one) {
        multiply_slice<1, true>(chunk, r, n, packs, slice);
      } else {
        multiply_slice<2, true>(chunk, r, n, packs, slice);
      }
    } else if (one) {
      multiply_slice<1, false>(chunk, r, n, packs, slice);
    } else {
      multiply_slice<2, false>(chunk, r, n, packs, slice);
    }
  }
}

}  // namespace kve::KVE_ISA
