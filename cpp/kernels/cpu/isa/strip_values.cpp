// Sums of the values of pages of strips, times their weights.
#include "kernels/cpu/isa/strip_fold.h"

namespace kve::KVE_ISA {

static ValueStrips carve_values(const StripSide& side, Carver& carver) {
  ValueStrips values = {};
  values.plan = carve_plan(side, carver);
  const int64_t groups = values.plan.n_groups;
  const int64_t vectors = kRunPages * kStripVectors * (side.per_channel ? 1 : groups);
  values.codes = carver.take<int8_t>(vectors * kStripTokens);
  values.unit = carver.take<float>(vectors);
  if (side.per_channel) {
    values.total = carver.take<float>(vectors * groups);
    values.beside = carver.take<float>(vectors * groups);
  }
  values.dots = carver.take<int32_t>(kStripVectors * values.plan.padded);
  return values;
}

size_t value_strips_bytes(const StripSide& side) {
  Carver carver(nullptr);
  carve_values(side, carver);
  return carver.size();
}

size_t most_value_strips_bytes(int64_t width) {
  const size_t per_channel = value_strips_bytes(largest_side(width, true));
  const size_t per_token = value_strips_bytes(largest_side(width, false));
  return per_channel > per_token ? per_channel : per_token;
}

ValueStrips plan_values(const StripSide& side, std::byte* memory) {
  Carver carver(memory);
  ValueStrips values = carve_values(side, carver);
  fill_plan(values.plan);
  return values;
}

int64_t strip_sum_floats(const StripSide& side) {
  return padded_width(side) + (side.per_channel ? 0 : group_count(side) * kLanes);
}

int64_t most_strip_sum_floats(int64_t width) {
  return strip_sum_floats(largest_side(width, false));
}

void close_sums(const StripSide& side, float* sums) {
  if (side.per_channel) return;
  const float* lanes = sums + padded_width(side);
  for (int64_t g = 0; g < group_count(side); ++g) {
    const float extra = sum(load(lanes + g * kLanes));
    const int64_t end = least((g + 1) * side.group, side.width);
    for (int64_t c = g * side.group; c < end; ++c) sums[c] += extra;
  }
}

// ---- parameters per token ----

// Codes of kItems vectors of weights from number `first` on, times the scales of the pages of a
// run: those of page p, group g and vector i are number (p * n_groups + g) * kStripVectors + i *
// kPlanes. What the integer products leave out is added to the lanes of the groups.
template <int kPlanes, bool kRest, int kItems>
__attribute__((noinline)) static void fold_weights(const ValueStrips& values, int32_t n_pages,
                                                   const float* weights, int64_t first, float* sums,
                                                   int64_t sum_stride) {
  constexpr int64_t kSlots = kFoldSlots<kItems>;
  const StripPlan& plan = values.plan;
  for (int64_t g = 0; g < plan.n_groups; ++g) {
    const auto input = [&](int32_t p) -> FoldInput {
      const float* of_page = weights + first * kRunStride + p * kStripTokens;
      const int64_t params = p * plan.n_params + g * kStripTokens;
      return {kStripTokens,       of_page,        kRunStride, plan.scale + params,
              plan.zero + params, plan.strip_bias};
    };
    FoldWork<kStripTokens, kItems> work;
    for (int32_t p = 0; p < n_pages; ++p) multiply_fold(input(p), p, &work);
    fold_units(&work);
    float* at = sums + first * sum_stride + plan.padded + g * kLanes;
    F32 lanes[kItems];
    for (int k = 0; k < kItems; ++k) lanes[k] = load(at + k * sum_stride);
    for (int32_t p = 0; p < n_pages; ++p) {
      const int64_t slot = (p * plan.n_groups + g) * kStripVectors + first * kPlanes;
      const FoldedCodes out = {values.codes + slot * kStripTokens, kPlanes * kStripTokens,
                               kStripTokens};
      F32 rest[kItems];
      fold<kStripTokens, kPlanes, kRest>(input(p), p, work, out, rest);
      for (int k = 0; k < kItems; ++k) {
        values.unit[slot + k * kPlanes] = work.unit[p * kSlots + k];
        lanes[k] = lanes[k] + rest[k];
      }
    }
    for (int k = 0; k < kItems; ++k) store(at + k * sum_stride, lanes[k]);
  }
}
// Of n vectors.
template <int kPlanes, bool kRest>
static void fold_weights(const ValueStrips& values, int32_t n_pages, const float* weights,
                         int64_t n, float* sums, int64_t sum_stride) {
  for_items<kFoldedTogether>(n, [&]<int kItems>(Items<kItems>, int64_t i) {
    fold_weights<kPlanes, kRest, kItems>(values, n_pages, weights, i, sums, sum_stride);
  });
}

// Sums of n vectors and one group of channels, from the integer results.
template <int kPlanes>
static void add_blocks(const int32_t* dots, int64_t blocks, int64_t n, const float* unit,
                       float* sums, int64_t sum_stride) {
  for (int64_t i = 0; i < n; ++i) {
    const F32 by = set(unit[i * kPlanes]);
    float* to = sums + i * sum_stride;
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t l = 0; l < 16; l += kLanes) {
        const int32_t* from = dots + (b * kStripVectors + i * kPlanes) * 16 + l;
        store(to + 16 * b + l, fma(joined<kPlanes>(from, 16), by, load(to + 16 * b + l)));
      }
    }
  }
}

// Page p of a run.
template <int kPlanes>
static void add_page(const ValueStrips& values, const std::byte* page, int64_t p, int64_t n,
                     float* sums, int64_t sum_stride, CodesAhead ahead) {
  const StripPlan& plan = values.plan;
  const int64_t n_blocks = plan.padded / 16;
  const int64_t group_blocks = plan.n_groups == 1 ? n_blocks : plan.side.group / 16;
  for (int64_t g = 0; g < plan.n_groups; ++g) {
    const int64_t slot = (p * plan.n_groups + g) * kStripVectors;
    const int64_t first = g * group_blocks;
    const int64_t blocks = least(group_blocks, n_blocks - first);
    const StripDots job =
        dots_of(plan, values.codes + slot * kStripTokens, kStripTokens, n * kPlanes, values.dots);
    dot_values(job, page + plan.side.code_offset + first * 128 * plan.side.bits, blocks, 0, 4,
               &ahead);
    add_blocks<kPlanes>(values.dots, blocks, n, values.unit + slot, sums + 16 * first, sum_stride);
  }
}

template <int kPlanes>
static void add_per_token(const ValueStrips& values, const StripRun& run, int64_t n_vectors,
                          const float* weights, float* sums, int64_t sum_stride) {
  const StripPlan& plan = values.plan;
  const int64_t batch = strip_batch(kPlanes);
  const auto fold_all = plan.has_rest ? fold_weights<kPlanes, true> : fold_weights<kPlanes, false>;
  load_run_params(plan, run, 0, true);
  for (int64_t v = 0; v < n_vectors; v += batch) {
    const int64_t n = least(batch, n_vectors - v);
    fold_all(values, run.n_pages, weights + v * kRunStride, n, sums + v * sum_stride, sum_stride);
    for (int32_t p = 0; p < run.n_pages; ++p) {
      if (v == 0) ask_params(run, p);
      add_page<kPlanes>(values, run.pages[p], p, n, sums + v * sum_stride, sum_stride,
                        v > 0 ? CodesAhead{} : run.codes_ahead[p]);
    }
  }
}

// ---- parameters per channel ----

// Weights of a page as codes, and what each group of tokens adds beside: for every channel,
// scale * beside + zero * total.
template <int kPlanes>
static float round_weights(const ValueStrips& values, const float* weights, int8_t* codes,
                           float* total, float* beside) {
  const StripPlan& plan = values.plan;
  F32 largest = zero();
  for (int64_t t = 0; t < kStripTokens; t += kLanes) largest = max(load(weights + t), largest);
  const F32 top = set(max_of(largest));
  const int64_t group = plan.side.group;
  float unit = 0;
  for (int64_t g = 0; g < plan.n_groups; ++g) {
    F32 all = zero();
    for (int64_t t = g * group; t < (g + 1) * group; t += kLanes) all = all + load(weights + t);
    F32 rest = all * set(plan.lift[0]);
    unit = round_codes<kPlanes, 0>(weights + g * group, group, top, plan.bias, codes + g * group,
                                   kStripTokens, &rest);
    total[g] = sum(all);
    beside[g] = sum(rest);
  }
  return unit;
}

// The sums of n vectors and one group of tokens of a page.
template <int kPlanes>
static void add_group(const ValueStrips& values, int32_t p, int64_t g, int64_t n, float* sums,
                      int64_t sum_stride) {
  const StripPlan& plan = values.plan;
  const float* scale = plan.scale + p * plan.n_params;
  const float* zeros = plan.zero + p * plan.n_params;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = p * kStripVectors + i;
    const F32 unit = set(values.unit[at]);
    const F32 beside = set(values.beside[at * plan.n_groups + g]);
    const F32 total = set(values.total[at * plan.n_groups + g]);
    float* to = sums + i * sum_stride;
    for (int64_t c = 0; c < plan.padded; c += kLanes) {
      const int32_t* dots = values.dots + (c / 16 * kStripVectors + i * kPlanes) * 16 + c % 16;
      const F32 level = fma(joined<kPlanes>(dots, 16), unit, beside);
      store(to + c, fma(load(scale + c), level, fma(load(zeros + c), total, load(to + c))));
    }
  }
}

template <int kPlanes>
static void add_per_channel(const ValueStrips& values, const StripRun& run, int64_t n_vectors,
                            const float* weights, float* sums, int64_t sum_stride) {
  const StripPlan& plan = values.plan;
  const int64_t batch = strip_batch(kPlanes);
  const int strips = plan.side.group / 16;
  CodesAhead no_more = {};
  CodesAhead ahead[kRunPages];
  for (int32_t p = 0; p < run.n_pages; ++p) ahead[p] = run.codes_ahead[p];
  for (int64_t v = 0; v < n_vectors; v += batch) {
    const int64_t n = least(batch, n_vectors - v);
    for (int32_t p = 0; p < run.n_pages; ++p) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = p * kStripVectors + i;
        values.unit[at] = round_weights<kPlanes>(
            values, weights + (v + i) * kRunStride + p * kStripTokens,
            values.codes + (p * kStripVectors + i * kPlanes) * kStripTokens,
            values.total + at * plan.n_groups, values.beside + at * plan.n_groups);
      }
    }
    for (int g = 0; g < plan.n_groups; ++g) {
      load_run_params(plan, run, g, false);
      for (int32_t p = 0; p < run.n_pages; ++p) {
        if (v == 0 && g == 0) ask_params(run, p);
        if (g * plan.side.group >= run.rows[p]) continue;
        const StripDots job = dots_of(plan, values.codes + p * kStripVectors * kStripTokens,
                                      kStripTokens, n * kPlanes, values.dots);
        dot_values(job, run.pages[p] + plan.side.code_offset, plan.padded / 16, g * strips,
                   (g + 1) * strips, v > 0 ? &no_more : &ahead[p]);
        add_group<kPlanes>(values, p, g, n, sums + v * sum_stride, sum_stride);
      }
    }
  }
}

void add_run(const ValueStrips& values, const StripRun& run, int64_t n_vectors,
             const float* weights, float* sums, int64_t sum_stride) {
  const StripSide& side = values.plan.side;
  const auto add = side.per_channel ? (side.planes == 2 ? add_per_channel<2> : add_per_channel<1>)
                                    : (side.planes == 2 ? add_per_token<2> : add_per_token<1>);
  add(values, run, n_vectors, weights, sums, sum_stride);
}

}  // namespace kve::KVE_ISA
