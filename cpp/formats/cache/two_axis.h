// Two-axis variance normalisation of a page, the second step of KVarN (arXiv 2606.03458; the first
// is a Hadamard rotation of the channels): channels and tokens are divided by their standard
// deviations in turn, and the factors that left both axes most even are kept.
//
// As in the authors' code: sample deviations are limited to [1e-3, 1e3] and products of them to
// [e^-0.3, e^10]; the unevenness of an axis is its largest deviation over its smallest. One head
// and 128 or 64 tokens at a time, 16 rounds. Keys begin with the tokens and are then coded
// asymmetrically per channel (the channel's factor enters its scale and zero, the tokens' factors
// are stored); values begin with the channels and are coded per token (the other way round).
#pragma once

#include <math.h>

#include "formats/cache/lanes.h"

namespace kve {

enum class Axis : uint8_t { tokens, channels };

constexpr int kNormalisingRounds = 16;

constexpr float kInfinity = __builtin_inff();

// One axis of a page.
struct AxisState {
  int n;
  const float* lines;  // [other axis' n][n], `stride` floats apart: the page, this axis last
  int64_t stride;
  float* factor;     // [n] what is divided by
  float* inverse;    // [n] of factor
  float* deviation;  // [n] after the factors of both axes
  float* best;       // [n] the factors to keep
};

// Calls function(F{}, i) for runs of lanes that begin at i and cover 0 to n.
template <class Function>
KVE_HD void for_lanes(int n, Function function) {
  int i = 0;
  for (; i + kVectorLanes <= n; i += kVectorLanes) function(Floats{}, i);
  for (; i < n; ++i) function(float{}, i);
}

// Sample deviations of x [n][lanes of F] times inverse [n]; infinite where sums overflow.
template <class F>
KVE_HD F deviations_of(const float* x, int64_t stride, int n, const float* inverse) {
  constexpr int kParts = 4;  // sums that do not wait for one another
  const auto value = [&](int i) { return load_lanes<F>(x + i * stride) * inverse[i]; };
  F sums[kParts] = {};
  F squares[kParts] = {};
  const int whole = n / kParts * kParts;
  for (int i = 0; i < whole; i += kParts) {
    for (int p = 0; p < kParts; ++p) sums[p] += value(i + p);
  }
  for (int i = whole; i < n; ++i) sums[0] += value(i);
  const F mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(n);
  for (int i = 0; i < whole; i += kParts) {
    for (int p = 0; p < kParts; ++p) {
      const F rest = value(i + p) - mean;
      squares[p] += rest * rest;
    }
  }
  for (int i = whole; i < n; ++i) {
    const F rest = value(i) - mean;
    squares[0] += rest * rest;
  }
  const F sum = (squares[0] + squares[1]) + (squares[2] + squares[3]);
  const F total = sum >= F{} ? sum : all_lanes<F>(kInfinity);
  const float samples = static_cast<float>(n > 1 ? n - 1 : 1);
  return each_lane(total / samples, [](float square) { return sqrtf(square); });
}

KVE_HD void measure_axis(AxisState* axis, const AxisState& other) {
  for_lanes(axis->n, [&]<class F>(F, int i) {
    const F deviation = deviations_of<F>(axis->lines + i, axis->stride, other.n, other.inverse);
    store_lanes(axis->deviation + i, deviation * load_lanes<F>(axis->inverse + i));
  });
}

// Divides an axis by its deviations, which follow.
KVE_HD void even_out(AxisState* axis) {
  constexpr float kLeast = 0.740818221f;  // e^-0.3
  constexpr float kMost = 22026.4658f;    // e^10
  for_lanes(axis->n, [&]<class F>(F, int i) {
    const F deviation = load_lanes<F>(axis->deviation + i);
    const F before = load_lanes<F>(axis->factor + i);
    const F step = limit_lanes(deviation, all_lanes<F>(1e-3f), all_lanes<F>(1e3f));
    const F factor = limit_lanes(before * step, all_lanes<F>(kLeast), all_lanes<F>(kMost));
    store_lanes(axis->deviation + i, deviation * (before / factor));
    store_lanes(axis->factor + i, factor);
    store_lanes(axis->inverse + i, 1.0f / factor);
  });
}

// combine(x[0], combine(x[1], ... start)) in any order.
template <class Combine>
KVE_HD float fold(const float* x, int n, float start, Combine combine) {
  Floats many = all_lanes<Floats>(start);
  int i = 0;
  for (; i + kVectorLanes <= n; i += kVectorLanes) many = combine(load_lanes<Floats>(x + i), many);
  float lanes[kVectorLanes];
  store_lanes(lanes, many);
  float folded = start;
  for (const float lane : lanes) folded = combine(lane, folded);
  for (; i < n; ++i) folded = combine(x[i], folded);
  return folded;
}

// Largest deviation over the smallest; NaN where all are infinite.
KVE_HD float unevenness(const AxisState& axis) {
  const float least =
      fold(axis.deviation, axis.n, kInfinity, [](auto a, auto b) { return smaller(a, b); });
  const float most =
      fold(axis.deviation, axis.n, 0.0f, [](auto a, auto b) { return larger(a, b); });
  return most / (least > 1e-8f ? least : 1e-8f);
}

KVE_HD void start_axis(AxisState* axis) {
  for (int i = 0; i < axis->n; ++i) axis->factor[i] = axis->inverse[i] = axis->best[i] = 1.0f;
}
KVE_HD void keep_factors(const AxisState& axis) {
  for (int i = 0; i < axis.n; ++i) axis.best[i] = axis.factor[i];
}

// Finds the factors to keep; each round begins with `first`.
KVE_HD void balance_axes(AxisState* first, AxisState* second, int rounds) {
  start_axis(first);
  start_axis(second);
  measure_axis(first, *second);
  measure_axis(second, *first);
  float least = unevenness(*first) + unevenness(*second);
  for (int round = 0; round < rounds; ++round) {
    even_out(first);
    measure_axis(second, *first);
    even_out(second);
    measure_axis(first, *second);
    const float now = unevenness(*first) + unevenness(*second);
    if (!(now <= least)) continue;
    least = now;
    keep_factors(*first);
    keep_factors(*second);
  }
}

// Floats of scratch memory.
KVE_HD size_t two_axes_scratch(int n_rows, int width) {
  const auto tokens = static_cast<size_t>(n_rows);
  const auto channels = static_cast<size_t>(width);
  return tokens * channels + 3 * (tokens + channels);
}

// Both axes of rows [n_rows][width] (`stride` floats apart), in memory of `scratch`, where `turned`
// [width][n_rows] is for the caller to fill with the rows.
struct TwoAxes {
  float* turned;
  AxisState channels;
  AxisState tokens;
};
KVE_HD TwoAxes two_axes_of(const float* rows, int n_rows, int width, int64_t stride,
                           float* channel_scale, float* row_scale, float* scratch) {
  float* channel = scratch + static_cast<int64_t>(n_rows) * width;
  float* token = channel + 3 * static_cast<int64_t>(width);
  return {scratch,
          {width, rows, stride, channel, channel + width, channel + 2 * width, channel_scale},
          {n_rows, scratch, n_rows, token, token + n_rows, token + 2 * n_rows, row_scale}};
}

// Finds what to divide finite rows [n_rows][width] (`stride` floats apart) by: channel_scale
// [width] and row_scale [n_rows], all within [e^-0.3, e^10]. Each round begins with `first`;
// scratch is two_axes_scratch(n_rows, width) floats.
KVE_HD void find_two_axes(const float* rows, int n_rows, int width, int64_t stride, int rounds,
                          float* channel_scale, float* row_scale, Axis first, float* scratch) {
  TwoAxes axes = two_axes_of(rows, n_rows, width, stride, channel_scale, row_scale, scratch);
  for (int r = 0; r < n_rows; ++r) {
    for (int c = 0; c < width; ++c) axes.turned[c * n_rows + r] = rows[r * stride + c];
  }
  if (first == Axis::tokens) {
    balance_axes(&axes.tokens, &axes.channels, rounds);
  } else {
    balance_axes(&axes.channels, &axes.tokens, rounds);
  }
}

}  // namespace kve
