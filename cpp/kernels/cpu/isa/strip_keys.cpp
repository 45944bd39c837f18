// Scores of the keys of pages of strips.
#include "kernels/cpu/isa/strip_fold.h"

namespace kve::KVE_ISA {

static KeyStrips carve_keys(const StripSide& side, int64_t n_vectors, Carver& carver) {
  KeyStrips keys = {};
  keys.plan = carve_plan(side, carver);
  keys.n_vectors = n_vectors;
  const int64_t padded = keys.plan.padded;
  const int64_t groups = n_vectors * keys.plan.n_groups;
  if (side.per_channel) {
    constexpr int64_t kVectors = kRunPages * kStripVectors;
    keys.code_stride = round_up(padded, 4 * kLanes);
    keys.codes = carver.take<int8_t>(kVectors * keys.code_stride);
    keys.unit = carver.take<float>(kVectors);
    keys.rest = carver.take<float>(kVectors);
  } else {
    keys.codes = carver.take<int8_t>(n_vectors * side.planes * padded);
    keys.unit = carver.take<float>(groups);
    keys.per_scale = carver.take<float>(groups);
    keys.per_zero = carver.take<float>(groups);
  }
  keys.dots = carver.take<int32_t>(kStripVectors * kStripTokens);
  return keys;
}

size_t key_strips_bytes(const StripSide& side, int64_t n_vectors) {
  Carver carver(nullptr);
  carve_keys(side, n_vectors, carver);
  return carver.size();
}

size_t most_key_strips_bytes(int64_t width, int64_t n_vectors) {
  const size_t per_channel = key_strips_bytes(largest_side(width, true), n_vectors);
  const size_t per_token = key_strips_bytes(largest_side(width, false), n_vectors);
  return per_channel > per_token ? per_channel : per_token;
}

KeyStrips plan_keys(const StripSide& side, int64_t n_vectors, std::byte* memory) {
  Carver carver(memory);
  KeyStrips keys = carve_keys(side, n_vectors, carver);
  fill_plan(keys.plan);
  return keys;
}

// ---- parameters per channel ----

// Codes of kItems queries from `first` on, times the scales of the pages of a run: those of page p
// and query i are number p * kStripVectors + i * kPlanes.
template <int kWidth, int kPlanes, bool kRest, int kItems>
__attribute__((noinline)) static void fold_queries(const KeyStrips& keys,
                                                   const StripQueries& queries, int32_t n_pages,
                                                   int64_t first, int64_t i) {
  constexpr int64_t kSlots = kFoldSlots<kItems>;
  const StripPlan& plan = keys.plan;
  const auto input = [&](int32_t p) -> FoldInput {
    const float* query = queries.vectors + p * queries.page_stride + (first + i) * queries.stride;
    const int64_t params = p * plan.n_params;
    return {plan.padded,        query,          queries.stride, plan.scale + params,
            plan.zero + params, plan.strip_bias};
  };
  FoldWork<kWidth, kItems> work;
  for (int32_t p = 0; p < n_pages; ++p) multiply_fold(input(p), p, &work);
  fold_units(&work);
  for (int32_t p = 0; p < n_pages; ++p) {
    const int64_t at = p * kStripVectors + i * kPlanes;
    const FoldedCodes out = {keys.codes + at * keys.code_stride, kPlanes * keys.code_stride,
                             keys.code_stride};
    F32 rest[kSlots];
    for (F32& of_slot : rest) of_slot = zero();
    fold<kWidth, kPlanes, kRest>(input(p), p, work, out, rest);
    float sums[kSlots];
    sum_of_each(rest, sums);
    for (int k = 0; k < kItems; ++k) {
      keys.unit[at + k * kPlanes] = work.unit[p * kSlots + k];
      keys.rest[at + k * kPlanes] = sums[k];
    }
  }
}
// Of the queries [first, first + n).
template <int kWidth, int kPlanes, bool kRest>
static void fold_queries(const KeyStrips& keys, const StripQueries& queries, int32_t n_pages,
                         int64_t first, int64_t n) {
  for_items<kWidth == 0 ? 1 : kFoldedTogether>(n, [&]<int kItems>(Items<kItems>, int64_t i) {
    fold_queries<kWidth, kPlanes, kRest, kItems>(keys, queries, n_pages, first, i);
  });
}

// Integer results of one vector as scores.
template <int kPlanes>
static void write_scores(const int32_t* dots, int64_t first, int64_t end, float unit, float rest,
                         float* to) {
  for (int64_t t = first; t < end; t += kLanes) {
    store(to + t, fma(joined<kPlanes>(dots + t, kStripTokens), set(unit), set(rest)));
  }
}

// Scores of n vectors from `first` on, with the keys of one group of tokens.
template <int kPlanes>
static void score_batch(const KeyStrips& keys, const StripQueries& queries, const StripRun& run,
                        int64_t first, int64_t n, int g, CodesAhead* ahead, float* scores) {
  const StripPlan& plan = keys.plan;
  const auto fold_all =
      plan.padded == 64
          ? (plan.has_rest ? fold_queries<64, kPlanes, true> : fold_queries<64, kPlanes, false>)
          : (plan.has_rest ? fold_queries<0, kPlanes, true> : fold_queries<0, kPlanes, false>);
  fold_all(keys, queries, run.n_pages, first, n);
  const int group = plan.side.group;
  CodesAhead no_more = {};
  for (int32_t p = 0; p < run.n_pages; ++p) {
    if (first == 0 && g == 0) ask_params(run, p);
    if (g * group >= run.rows[p]) continue;
    const int64_t slot = p * kStripVectors;
    const StripDots job = dots_of(plan, keys.codes + slot * keys.code_stride, keys.code_stride,
                                  n * kPlanes, keys.dots);
    dot_keys(job, run.pages[p] + plan.side.code_offset, key_strips(plan.side.width), g * group / 16,
             group / 16, first > 0 ? &no_more : &ahead[p]);
    for (int64_t i = 0; i < n; ++i) {
      write_scores<kPlanes>(keys.dots + i * kPlanes * kStripTokens, g * group, (g + 1) * group,
                            keys.unit[slot + i * kPlanes], keys.rest[slot + i * kPlanes],
                            scores + (first + i) * kRunStride + p * kStripTokens);
    }
  }
}

template <int kPlanes>
static void score_per_channel(const KeyStrips& keys, const StripQueries& queries,
                              const StripRun& run, float* scores) {
  const int64_t batch = strip_batch(kPlanes);
  CodesAhead ahead[kRunPages];
  for (int32_t p = 0; p < run.n_pages; ++p) ahead[p] = run.codes_ahead[p];
  for (int g = 0; g < keys.plan.n_groups; ++g) {
    load_run_params(keys.plan, run, g, true);
    for (int64_t v = 0; v < keys.n_vectors; v += batch) {
      score_batch<kPlanes>(keys, queries, run, v, least(batch, keys.n_vectors - v), g, ahead,
                           scores);
    }
  }
}

// ---- parameters per token ----

template <int kPlanes>
static void round_queries(const KeyStrips& keys, const float* queries, int64_t stride) {
  const StripPlan& plan = keys.plan;
  const int64_t group = plan.side.group;
  for (int64_t v = 0; v < keys.n_vectors; ++v) {
    const float* query = queries + v * stride;
    int8_t* codes = keys.codes + v * kPlanes * plan.padded;
    for (int64_t g = 0; g < plan.n_groups; ++g) {
      const int64_t first = g * group;
      const int64_t n = g + 1 == plan.n_groups ? plan.padded - first : group;
      F32 largest = zero();
      F32 lifted = zero();
      F32 total = zero();
      for (int64_t c = first; c < first + n; c += kLanes) {
        const F32 q = load(query + c);
        largest = max(abs(q), largest);
        lifted = fma(q, load(plan.lift + c), lifted);
        total = total + q;
      }
      const int64_t at = v * plan.n_groups + g;
      keys.unit[at] = round_codes<kPlanes, 1>(query + first, n, largest, plan.bias + first,
                                              codes + first, plan.padded, &lifted);
      keys.per_scale[at] = sum(lifted);
      keys.per_zero[at] = sum(total);
    }
  }
}

static void set_queries(const KeyStrips& keys, const float* queries, int64_t stride) {
  if (keys.plan.side.per_channel) return;
  keys.plan.side.planes == 2 ? round_queries<2>(keys, queries, stride)
                             : round_queries<1>(keys, queries, stride);
}
void set_queries(const KeyStrips& keys, const StripQueries& queries) {
  set_queries(keys, queries.vectors, queries.stride);
}

static const std::byte* strip_at(const StripSide& side, const std::byte* strips, int64_t strip) {
  if (side.strip_bits == nullptr) return strips + strip * 32 * side.bits;
  for (int64_t s = 0; s < strip; ++s) strips += 32 * int64_t{side.strip_bits[s]};
  return strips;
}

// Adds the part of a group of channels to the scores of one vector and page.
template <int kPlanes>
static void add_group_scores(const KeyStrips& keys, const int32_t* dots, int64_t at,
                             const float* scale, const float* zeros, bool first, float* to) {
  const F32 unit = set(keys.unit[at]);
  const F32 per_scale = set(keys.per_scale[at]);
  const F32 per_zero = set(keys.per_zero[at]);
  for (int64_t t = 0; t < kStripTokens; t += kLanes) {
    const F32 level = fma(joined<kPlanes>(dots + t, kStripTokens), unit, per_scale);
    F32 before = first ? zero() : load(to + t);
    if (keys.plan.has_rest) before = fma(per_zero, load(zeros + t), before);
    store(to + t, fma(level, load(scale + t), before));
  }
}

template <int kPlanes>
static void score_page_per_token(const KeyStrips& keys, const StripRun& run, int32_t p,
                                 float* scores) {
  const StripPlan& plan = keys.plan;
  const int64_t batch = strip_batch(kPlanes);
  const int64_t n_strips = key_strips(plan.side.width);
  const int64_t group_strips = plan.n_groups == 1 ? n_strips : plan.side.group / 4;
  CodesAhead ahead = run.codes_ahead[p];
  ask_params(run, p);
  for (int64_t v = 0; v < keys.n_vectors; v += batch, ahead = {}) {
    const int64_t n = least(batch, keys.n_vectors - v);
    for (int64_t g = 0; g < plan.n_groups; ++g) {
      const int64_t first = g * group_strips;
      StripDots job = dots_of(plan, keys.codes + v * kPlanes * plan.padded + 4 * first, plan.padded,
                              n * kPlanes, keys.dots);
      if (job.strip_bits != nullptr) job.strip_bits += first;
      dot_keys(job, strip_at(plan.side, run.pages[p] + plan.side.code_offset, first),
               least(group_strips, n_strips - first), 0, 4, &ahead);
      const float* scale = plan.scale + p * plan.n_params + g * kStripTokens;
      const float* zeros = plan.zero + p * plan.n_params + g * kStripTokens;
      for (int64_t i = 0; i < n; ++i) {
        add_group_scores<kPlanes>(keys, keys.dots + i * kPlanes * kStripTokens,
                                  (v + i) * plan.n_groups + g, scale, zeros, g == 0,
                                  scores + (v + i) * kRunStride + p * kStripTokens);
      }
    }
  }
}

template <int kPlanes>
static void score_per_token(const KeyStrips& keys, const StripQueries& queries, const StripRun& run,
                            float* scores) {
  load_run_params(keys.plan, run, 0, false);
  for (int32_t p = 0; p < run.n_pages; ++p) {
    if (queries.page_stride != 0) {
      set_queries(keys, queries.vectors + p * queries.page_stride, queries.stride);
    }
    score_page_per_token<kPlanes>(keys, run, p, scores);
  }
}

void score_run(const KeyStrips& keys, const StripQueries& queries, const StripRun& run,
               float* scores) {
  const StripSide& side = keys.plan.side;
  const auto score = side.per_channel
                         ? (side.planes == 2 ? score_per_channel<2> : score_per_channel<1>)
                         : (side.planes == 2 ? score_per_token<2> : score_per_token<1>);
  score(keys, queries, run, scores);
}

}  // namespace kve::KVE_ISA
