// Inputs to codes, as matmat.cpp reads them.
#include "kernels/cpu/isa/pack.h"

#include <string.h>

#include "kernels/cpu/isa/gated_work.h"

namespace kve::KVE_ISA {

constexpr int64_t kPackGroups = 16;  // quantized at a time
constexpr int kSumLanes = (kMatTokens + kLanes - 1) / kLanes * kLanes;

size_t pack_bytes(int64_t cols) { return Pack(nullptr, cols).size; }

// The codes of input t of an entry.
static inline int8_t* codes_of(const Pack& out, int t, int64_t entry) {
  return reinterpret_cast<int8_t*>(out.codes + (entry * kMatTokens + t) * 8);
}

// The sums of codes 0-15 of all inputs of an entry, one to a lane, then of codes 16-31.
static inline void sum_codes(const Pack& out, int64_t entry, int32_t (&sums)[2][kSumLanes]) {
  const int8_t* codes = codes_of(out, 0, entry);
#if defined(KVE_SIX_SUMS)
  static_assert(kMatTokens == 6);
  I32 halves[2];
  six_code_sums(codes, halves);
  for (int half = 0; half < 2; ++half) store_i32(sums[half], halves[half]);
#else
  for (int t = 0; t < kMatTokens; ++t) {
    int32_t own[2];
    code_sums(codes + 32 * t, own);
    for (int half = 0; half < 2; ++half) sums[half][t] = own[half];
  }
#endif
}

// What follows from the codes and scales of an entry; those of first planes come first.
static inline void sum_entry(const Pack& out, int64_t entry) {
  const bool first = entry < out.n_groups;
  const int64_t group = out.groups[entry];
  int32_t totals[2][kSumLanes] = {};  // lanes without an input are added up as well
  sum_codes(out, entry, totals);
  for (int t = 0; t < kMatTokens; t += kLanes) {
    const int64_t n = least(kMatTokens - t, kLanes);
    const F32 scale = load_n(out.scales + entry * kMatTokens + t, n);
    const I32 begin = set_i32(kDotsBegin);
    const auto put = [&](I32 sums, int32_t* start, float* scaled_sums) {
      static_assert(kDotBias == 0 || kDotBias == 128);
      const I32 bias = kDotBias == 0 ? set_i32(0) : shift_left(sums, 7);
      store_n(reinterpret_cast<float*>(start + t), as_f32(begin - bias), n);
      const F32 before = first ? zero() : load_n(scaled_sums + t, n);
      store_n(scaled_sums + t, fma(scale, to_f32(sums), before), n);
    };
    const I32 low = load_i32(totals[0] + t);
    const I32 high = load_i32(totals[1] + t);
    put(low, out.start16 + 2 * entry * kMatTokens, out.sums16 + 2 * group * kMatTokens);
    put(high, out.start16 + (2 * entry + 1) * kMatTokens,
        out.sums16 + (2 * group + 1) * kMatTokens);
    put(low + high, out.start32 + entry * kMatTokens, out.sums32 + group * kMatTokens);
  }
}

// The sums of all groups as words.
static inline void round_sums(const Pack& out) {
#if defined(KVE_WORD_MINIMA)
  static_assert(kMatTokens <= kLanes);
  const auto sums = [&](int64_t g) { return load_n(out.sums32 + g * kMatTokens, kMatTokens); };
  const F32 units = round_to_words(out.n_groups, sums, [&](int64_t pair, I32 words) {
    store_n(reinterpret_cast<float*>(out.sum_words + pair * kMatTokens), as_f32(words), kMatTokens);
  });
  store_n(out.sum_units, units, kMatTokens);
#else
  static_cast<void>(out);
#endif
}

// The first plane of groups [first, first + n), but for its sums.
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
      memcpy(codes_of(out, t, first + g), codes + 32 * g, 32);
      out.scales[(first + g) * kMatTokens + t] = scales[g];
    }
  }
}

// Ends a pack of which all groups have codes and scales. Inputs whose scale exceeds their limit
// have a second plane of a group: `remainders` (group, input, dst) writes its codes.
template <class Remainders>
static void end(const Pack& out, float least_error, Remainders remainders) {
  float limit[kMatTokens] = {};
  for (int64_t g = 0; g < out.n_groups; ++g) {
    out.groups[g] = static_cast<int32_t>(g);
    sum_entry(out, g);
    for (int t = 0; t < kMatTokens; ++t) {
      const float scale = out.scales[g * kMatTokens + t];
      limit[t] += scale * scale;
    }
  }
  for (float& one : limit) one = plane_limit(one, least_error, out.n_groups);
  int64_t entry = out.n_groups;
  for (int64_t g = 0; g < out.n_groups; ++g) {
    const float* scales = out.scales + g * kMatTokens;
    bool some = false;
    for (int t = 0; t < kMatTokens; ++t) some |= scales[t] > limit[t];
    if (!some) continue;
    for (int t = 0; t < kMatTokens; ++t) {
      int8_t* codes = codes_of(out, t, entry);
      const bool is_fine = scales[t] > limit[t];
      if (is_fine) {
        remainders(g, t, codes);
      } else {
        memset(codes, 0, 32);
      }
      out.scales[entry * kMatTokens + t] = is_fine ? scales[t] / kPlaneRatio : 0.0f;
    }
    out.groups[entry] = static_cast<int32_t>(g);
    sum_entry(out, entry++);
  }
  *out.n_entries = static_cast<int32_t>(entry);
  round_sums(out);
}

void pack(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, float least_error,
          std::byte* dst) {
  const Pack out(dst, cols);
  for (int64_t first = 0; first < out.n_groups; first += kPackGroups) {
    quantize_groups(out, x, stride, n_tokens, first, least(out.n_groups - first, kPackGroups));
  }
  end(out, least_error, [&](int64_t g, int t, int8_t* codes) {
    quantize_remainders(x + t * stride + 32 * g, codes_of(out, t, g),
                        out.scales[g * kMatTokens + t], codes);
  });
}

// ---- what a gate leaves ----

size_t gated_scratch(int64_t cols, int64_t n_rows, int64_t n_tokens) {
  return GatedWork(nullptr, matmat_scratch(cols, n_tokens), n_rows, n_tokens).size;
}

// A group of n inputs, whose values are rows of 32. The codes of the second plane wait where that
// of the group would be if all before it had one.
static void place_values(const Pack& out, int64_t group, const float* rows, int64_t n) {
  int8_t* codes = codes_of(out, 0, group);
  int8_t* remainders = codes_of(out, 0, out.n_groups + group);
  float* scales = out.scales + group * kMatTokens;
  quantize_values(rows, 32 * n, codes, remainders, scales);
  if (n == kMatTokens) return;
  memset(codes + 32 * n, 0, static_cast<size_t>(32 * (kMatTokens - n)));
  memset(scales + n, 0, static_cast<size_t>(kMatTokens - n) * sizeof(float));
}

void gated_group(const GatedChunk& chunk, const std::byte* packs) {
  const int64_t n_tokens = chunk.gate.n_tokens;
  const GatedWork work(chunk.scratch, matmat_scratch(chunk.gate.cols, n_tokens), kGatedRows,
                       n_tokens);
  multiply_gate(chunk, work, [&](const MatmulChunk& product) { matmat(product, packs); });
  gated(chunk.activation, work.gate, work.up, n_tokens * kGatedRows);
  const int64_t group = chunk.gate.first_row / kGatedRows;
  std::byte* dst = chunk.packs;
  for (int64_t t = 0; t < n_tokens; t += kMatTokens, dst += pack_bytes(chunk.cols)) {
    place_values(Pack(dst, chunk.cols), group, work.gate + t * kGatedRows,
                 least(n_tokens - t, kMatTokens));
  }
}

void end_pack(int64_t cols, float least_error, std::byte* pack) {
  const Pack out(pack, cols);
  end(out, least_error, [&](int64_t g, int t, int8_t* codes) {
    memmove(codes, codes_of(out, t, out.n_groups + g), 32);
  });
}

}  // namespace kve::KVE_ISA
