// Many inputs against quantized weights. A slice of rows is unpacked once (slice.h) and multiplied
// with all inputs, which are broadcast 4 values at a time. No horizontal sums, no shuffles in the
// inner loop.
#include <string.h>

#include "kernels/cpu/isa/slice.h"

namespace kve::KVE_ISA {

namespace {

// Dot products of one plane are below 2^22 in magnitude. Begun at the bits of 1.5 * 2^23, whose
// last bit counts 1, their sum is the bits of the float kFloatStart + dot. With one rounding, sum *
// scale - kFloatStart * scale is then the product dot * scale, in one instruction instead of two
// that convert and multiply: where all vector arithmetic shares its ports with the dot products,
// these are 73 % of it instead of 67 %. Needs a fused multiply-add.
#if defined(__FMA__)
constexpr bool kFloatDots = true;
#else
constexpr bool kFloatDots = false;
#endif
constexpr int64_t kPackGroups = 8;     // quantized at a time
constexpr float kLeastScale = 1e-30f;  // of a group with a second plane: its inverse is finite
constexpr int32_t kFloatStartBits = 0x4b400000;
constexpr float kFloatStart = 12582912.0f;

// What the integer sums of a pack are, and how they are scaled.
enum class Sums {
  whole,    // dot products
  shifted,  // the bits of floats, from which kFloatStart is taken
  fused,    // the same, by Slice::offsets
};

// kMatTokens inputs, interleaved: the values at one place of all of them lie side by side. An entry
// is 32 columns of them in one plane: first all columns in their order, then those that some input
// has a second plane of, in which the other inputs are zero.
struct Pack {
  int32_t* n_entries;  // [1]
  int32_t* groups;     // [entries]: columns 32 * group ...
  int32_t* codes;      // [entries][8][kMatTokens], 4 codes each
  float* scales;       // [entries][kMatTokens]
  int32_t* start16;    // [entries][2][kMatTokens]: what sums begin with, to take back kDotBias
  int32_t* start32;    // [entries][kMatTokens]
  float* sums16;       // [entries][2][kMatTokens]: scale times the sum of codes
  float* sums32;       // [entries][kMatTokens]

  Pack(std::byte* data, int64_t cols) {
    const int64_t most = 2 * (cols / 32);
    Carver carver(data);
    n_entries = carver.take<int32_t>(1);
    groups = carver.take<int32_t>(most);
    codes = carver.take<int32_t>(most * 8 * kMatTokens);
    scales = carver.take<float>(most * kMatTokens);
    start16 = carver.take<int32_t>(most * 2 * kMatTokens);
    start32 = carver.take<int32_t>(most * kMatTokens);
    sums16 = carver.take<float>(most * 2 * kMatTokens);
    sums32 = carver.take<float>(most * kMatTokens);
    size = carver.size();
  }
  size_t size;
};

}  // namespace

size_t pack_bytes(int64_t cols) { return Pack(nullptr, cols).size; }

// Input t of an entry.
static inline void place_group(const Pack& out, int t, int64_t entry, const int8_t* codes,
                               float scale) {
  int32_t* words = out.codes + 8 * entry * kMatTokens + t;
  KVE_UNROLL(8)
  for (int64_t i = 0; i < 8; ++i) memcpy(words + i * kMatTokens, codes + 4 * i, 4);
  out.scales[entry * kMatTokens + t] = scale;
}

// What follows from an entry of inputs t ... t + n - 1, which are lanes: vectors of words reach
// past them, within the pack.
static inline void sum_group(const Pack& out, int t, int64_t n, int64_t entry) {
  const int32_t* words = out.codes + 8 * entry * kMatTokens + t;
  I32 total[2] = {set_i32(0), set_i32(0)};
  KVE_UNROLL(8)
  for (int i = 0; i < 8; ++i) {
    total[i / 4] = dot4_small(total[i / 4], set_bytes(1), load_i32(words + i * kMatTokens));
  }
  const F32 scale = load_n(out.scales + entry * kMatTokens + t, n);
  const I32 begin = set_i32(kFloatDots ? kFloatStartBits : 0);
  const auto put = [&](I32 sums, int32_t* start, float* scaled_sums, int64_t place) {
    static_assert(kDotBias == 0 || kDotBias == 128);
    const I32 bias = kDotBias == 0 ? set_i32(0) : shift_left(sums, 7);
    const int64_t at = place * kMatTokens + t;
    store_n(reinterpret_cast<float*>(start + at), as_f32(begin - bias), n);
    store_n(scaled_sums + at, scale * to_f32(sums), n);
  };
  put(total[0], out.start16, out.sums16, 2 * entry);
  put(total[1], out.start16, out.sums16, 2 * entry + 1);
  put(total[0] + total[1], out.start32, out.sums32, entry);
}

static inline void sum_entry(const Pack& out, int64_t entry) {
  for (int t = 0; t < kMatTokens; t += kLanes) {
    sum_group(out, t, least(kMatTokens - t, kLanes), entry);
  }
}

// The first plane of groups [first, first + n).
static inline void quantize_groups(const Pack& out, const float* x, int64_t stride,
                                   int64_t n_tokens, int64_t first, int64_t n) {
  int8_t codes[32 * kPackGroups];
  float scales[kPackGroups];
  for (int t = 0; t < kMatTokens; ++t) {
    if (t < n_tokens) {
      quantize_values(x + t * stride + 32 * first, 32 * n, codes, nullptr, scales);
    } else {
      memset(codes, 0, sizeof(codes));
      memset(scales, 0, sizeof(scales));
    }
    for (int64_t g = 0; g < n; ++g) {
      place_group(out, t, first + g, codes + 32 * g, scales[g]);
    }
  }
  for (int64_t g = first; g < first + n; ++g) {
    out.groups[g] = static_cast<int32_t>(g);
    sum_entry(out, g);
  }
}

// The second plane of a group, of the inputs whose scale is above `limit`, if there are any.
static void add_plane(const Pack& out, const float* x, int64_t stride, int64_t group,
                      const float* limit) {
  const float* scales = out.scales + group * kMatTokens;
  bool is_fine[kMatTokens];
  bool some = false;
  for (int t = 0; t < kMatTokens; ++t) some |= is_fine[t] = scales[t] > limit[t];
  if (!some) return;
  const int64_t entry = (*out.n_entries)++;
  out.groups[entry] = static_cast<int32_t>(group);
  for (int t = 0; t < kMatTokens; ++t) {
    int8_t remainders[32] = {};
    if (is_fine[t]) {
      int8_t codes[32];
      const int32_t* words = out.codes + 8 * group * kMatTokens + t;
      for (int i = 0; i < 8; ++i) memcpy(codes + 4 * i, words + i * kMatTokens, 4);
      quantize_remainders(x + t * stride + 32 * group, codes, scales[t], remainders);
    }
    place_group(out, t, entry, remainders, is_fine[t] ? scales[t] / kPlaneRatio : 0.0f);
  }
  sum_entry(out, entry);
}

void pack(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, float least_error,
          std::byte* dst) {
  const Pack out(dst, cols);
  const int64_t n_groups = cols / 32;
  for (int64_t first = 0; first < n_groups; first += kPackGroups) {
    quantize_groups(out, x, stride, n_tokens, first, least(n_groups - first, kPackGroups));
  }
  *out.n_entries = static_cast<int32_t>(n_groups);
  // Rounding errors are as large as scales.
  float limit[kMatTokens] = {};
  for (int64_t g = 0; g < n_groups; ++g) {
    for (int t = 0; t < kMatTokens; ++t) {
      const float scale = out.scales[g * kMatTokens + t];
      limit[t] += scale * scale;
    }
  }
  for (float& one : limit) {
    const float root = __builtin_sqrtf(one * least_error / static_cast<float>(n_groups));
    one = root > kLeastScale ? root : kLeastScale;
  }
  for (int64_t g = 0; g < n_groups; ++g) add_plane(out, x, stride, g, limit);
}

size_t matmat_scratch(int64_t cols) { return Slice(nullptr, cols).size; }

template <Sums kSums>
static inline F32 scaled(I32 sum, F32 scale, F32 offset) {
  if constexpr (kSums == Sums::fused) return fma(as_f32(sum), scale, offset);
  if constexpr (kSums == Sums::shifted) return (as_f32(sum) - set(kFloatStart)) * scale;
  return to_f32(sum) * scale;
}

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
  // Lines of y lie pages apart: stores that wait for them would hold up what follows.
  for (int t = 0; t < kMatTokens; ++t) {
    for (int v = 0; v < kMatVectors; ++v) __builtin_prefetch(y + t * y_stride + v * kLanes, 1);
  }
  const int32_t* codes = x.codes;
  const int32_t* start = kParts == 2 ? x.start16 : x.start32;
  const float* input_sums = kParts == 2 ? x.sums16 : x.sums32;
  const int64_t n_parts = int64_t{*x.n_entries} * kParts;
  for (int64_t p = 0; p < n_parts; ++p) {
    const int64_t group = int64_t{x.groups[p / kParts]} * kParts + p % kParts;
    const int8_t* w = slice.codes + group * (32 / kParts) * kSliceRows;
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
        const I32 value = set_i32(codes[t]);
        KVE_UNROLL(2)
        for (int v = 0; v < kMatVectors; ++v) dot[v][t] = dot4(dot[v][t], rows[v], value);
      }
      codes += kMatTokens;
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
      if (kMin) {
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
    float* y = chunk.y + (first_token + t) * chunk.y_stride + first_row;
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
      float* y = chunk.y + t * chunk.y_stride + first_row;
      multiply<kParts, kMin, kSums>(slice, pack, bias, y, chunk.y_stride);
      continue;
    }
    multiply<kParts, kMin, kSums>(slice, pack, nullptr, sums, kSliceRows);
    write_out(chunk, first_row, n_rows, t, least(chunk.n_tokens - t, kMatTokens), sums);
  }
}

// Whether kFloatStart * scale is a finite float for all scales of a type, without rounding: the
// scale has 22 bits at most.
static bool has_offsets(WeightType type) {
  return type != WeightType::mxfp4 && type != WeightType::q8_k;
}

// What takes kFloatStart back from the sums of a slice.
static void place_offsets(int64_t n_scales, const Slice& slice) {
  for (int64_t i = 0; i < n_scales * kSliceRows; i += kLanes) {
    store(slice.offsets + i, load(slice.scales + i) * set(-kFloatStart));
  }
}

template <int kParts, bool kMin>
static void multiply_slice(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                           const std::byte* packs, const Slice& slice) {
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
    if (chunk.tiles != nullptr) {
      with_interleaved(chunk.format->type,
                       [&](auto kind) { unpack_tiles<decltype(kind)>(chunk, r, n, slice); });
    } else {
      unpack_slice(chunk, r, n, !one, slice);
    }
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
