// Scales and zeros of groups of values side by side, one to a lane: value i of group l is x[i *
// stride + l]. Sums run over i in order, so that they are the same for any number of lanes.
#pragma once

#include <math.h>

#include "formats/cache/group_scale.h"
#include "formats/cache/lanes.h"

namespace kve {

// Groups side by side: value i of group l is values[i * stride + l], its code goes to
// codes[i * code_stride + l].
struct GroupBlock {
  const float* values;
  int64_t stride;
  int n;  // values of a group
  uint8_t* codes;
  int64_t code_stride;
};

template <class F>
KVE_HD F row_of(const GroupBlock& b, int i) {
  return load_lanes<F>(b.values + i * b.stride);
}
// From group `first` on.
KVE_HD GroupBlock groups_from(const GroupBlock& b, int first) {
  return {b.values + first, b.stride, b.n, b.codes + first, b.code_stride};
}

// Of the lanes' groups; as stored, or before that.
template <class F>
struct LaneParams {
  F scale;
  F zero;
};

template <class F>
struct LaneRange {
  F low;
  F high;
};

template <class F>
KVE_HD LaneRange<F> range_of(const GroupBlock& b) {
  F low = row_of<F>(b, 0);
  F high = low;
  for (int i = 1; i < b.n; ++i) {
    const F value = row_of<F>(b, i);
    low = smaller(value, low);
    high = larger(value, high);
  }
  return {low, high};
}

// Largest magnitudes, and the values that have them first.
template <class F>
struct LaneExtreme {
  F magnitude;
  F value;
};

template <class F>
KVE_HD LaneExtreme<F> extreme_of(const GroupBlock& b) {
  // A group of zeros gets the sign that gguf gives it.
  LaneExtreme<F> extreme = {F{}, row_of<F>(b, 0)};
  for (int i = 0; i < b.n; ++i) {
    const F value = row_of<F>(b, i);
    const F magnitude = magnitudes(value);
    extreme.value = magnitude > extreme.magnitude ? value : extreme.value;
    extreme.magnitude = larger(magnitude, extreme.magnitude);
  }
  return extreme;
}

// 1 / x; 1 where x is zero.
template <class F>
KVE_HD F inverse_or_one(F x) {
  return 1.0f / (x == F{} ? all_lanes<F>(1) : x);
}
// 1 / x; 0 where x is zero or that is infinite.
template <class F>
KVE_HD F inverse_or_zero_lanes(F x) {
  const F inverse = inverse_or_one(x);
  const F finite = magnitudes(inverse) <= all_lanes<F>(0x1.fffffep127f) ? inverse : F{};
  return x == F{} ? F{} : finite;
}

// Squared errors of the codes that belong to stored parameters.
template <class F>
KVE_HD F squared_errors(const GroupBlock& b, F top, const LaneParams<F>& params) {
  const F inverse = inverse_or_one(params.scale);
  F sum{};
  for (int i = 0; i < b.n; ++i) {
    const F u = row_of<F>(b, i) - params.zero;
    const F code = round_lanes(limit_lanes(u * inverse, F{}, top));
    const F error = u - params.scale * code;
    sum += error * error;
  }
  return sum;
}

// Scales and zeros, as stored, of least squared error for the codes round((x - low) * inverse).
template <class F>
KVE_HD LaneParams<F> refit(const GroupBlock& b, ScaleFormat format, F top, F low, F inverse) {
  F codes{};
  F squares{};
  F values{};  // of u = x - low, so that a large mean costs no digits
  F products{};
  for (int i = 0; i < b.n; ++i) {
    const F u = row_of<F>(b, i) - low;
    const F code = round_lanes(limit_lanes(u * inverse, F{}, top));
    codes += code;
    squares += code * code;
    values += u;
    products += code * u;
  }
  const float n = static_cast<float>(b.n);
  const F spread = n * squares - codes * codes;
  const F common = n * products - codes * values;
  // Without spread all codes are alike and any scale is as good.
  const F scale = round_to_scale(format, common / (spread > F{} ? spread : all_lanes<F>(1)));
  return {scale, round_to_half(low + (values - scale * codes) / n)};
}

// The smallest share of the range that is tried.
KVE_HD float least_clip(int bits) {
  switch (bits) {
    case 1:
      return 0.35f;
    case 2:
      return 0.6f;
    case 3:
      return 0.75f;
    case 4:
      return 0.85f;
    default:
      return 0.92f;
  }
}

// What the number of bits means for groups over their range. It may differ between lanes.
template <class F>
struct LaneBits {
  F top;   // the largest code
  F clip;  // least_clip
};

// Parameters, as stored, of least squared error among: `best`, those of the whole range; and six
// parts of the range around its middle, each refitted to its codes. Where squares are too large for
// a float, the whole range stays.
template <class F>
KVE_HD LaneParams<F> search_params(const GroupBlock& b, const LaneBits<F>& bits, ScaleFormat format,
                                   const LaneRange<F>& range, LaneParams<F> best) {
  constexpr int kTries = 6;
  const F top = bits.top;
  F best_error = squared_errors(b, top, best);
  for (int t = 0; t < kTries; ++t) {
    const F clip = bits.clip + (1.0f - bits.clip) * (static_cast<float>(t) / (kTries - 1));
    const F width = range.high - range.low;
    const F low = range.low + width * (0.5f - 0.5f * clip);
    const LaneParams<F> fitted = refit(b, format, top, low, top * inverse_or_one(width * clip));
    const F error = squared_errors(b, top, fitted);
    const auto better = error < best_error;  // never when either is NaN
    best_error = better ? error : best_error;
    best.scale = better ? fitted.scale : best.scale;
    best.zero = better ? fitted.zero : best.zero;
  }
  return best;
}

// Root mean squares, of any finite values: squares are of shares of the largest.
template <class F>
KVE_HD F root_mean_square(const GroupBlock& b) {
  const F largest = extreme_of<F>(b).magnitude;
  // Stored scales end at 2^-25, so that smaller groups need no care.
  const F inverse = 1.0f / larger(largest, all_lanes<F>(0x1p-60f));
  F sum{};
  for (int i = 0; i < b.n; ++i) {
    const F share = row_of<F>(b, i) * inverse;
    sum += share * share;
  }
  return largest * each_lane(sum / static_cast<float>(b.n), [](float x) { return sqrtf(x); });
}

}  // namespace kve
