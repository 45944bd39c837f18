// Codes of groups side by side, for parameters that are given: the loops that choose codes.
#pragma once

#include "formats/cache/group_fit.h"
#include "formats/cache/levels.h"

namespace kve {

// Codes half_even((x - zero) / scale), within [low, high], plus `offset`.
template <class F>
KVE_HD void divide_codes(const GroupBlock& b, const LaneParams<F>& params, F low, F high,
                         int offset) {
  const auto flat = params.scale == F{};
  const F divisor = flat ? all_lanes<F>(1) : params.scale;
  const F least = flat ? F{} : low;
  const F most = flat ? F{} : high;
  for (int i = 0; i < b.n; ++i) {
    const F quotient = (row_of<F>(b, i) - params.zero) / divisor;
    const F code = round_lanes(limit_lanes(quotient, least, most));
    store_bytes<F>(b.codes + i * b.code_stride, to_ints(code) + offset);
  }
}

// ggml's codes trunc((x - zero) * inverse + bias), at most `top`.
template <class F>
KVE_HD void truncate_codes(const GroupBlock& b, const LaneParams<F>& params, float bias,
                           float top) {
  const F inverse = inverse_or_zero_lanes(params.scale);
  for (int i = 0; i < b.n; ++i) {
    const F shifted = (row_of<F>(b, i) - params.zero) * inverse + bias;
    const F code = limit_lanes(shifted, F{}, all_lanes<F>(top));
    store_bytes<F>(b.codes + i * b.code_stride, to_ints(code));
  }
}

// ggml's q8_0: halves round away from zero.
template <class F>
KVE_HD void round_away_codes(const GroupBlock& b, const LaneParams<F>& params) {
  const F inverse = inverse_or_zero_lanes(params.scale);
  const F most = all_lanes<F>(127);
  const F none{};
  for (int i = 0; i < b.n; ++i) {
    const F scaled = limit_lanes(row_of<F>(b, i) * inverse, -most, most);
    const F magnitude = magnitudes(scaled);
    const F whole = to_floats<F>(to_ints(magnitude));
    // Exact, where adding 0.5 first would round 0.49999997 up.
    const F rounded = whole + (magnitude - whole >= 0.5f ? all_lanes<F>(1) : none);
    const F code = scaled < none ? -rounded : rounded;
    store_bytes<F>(b.codes + i * b.code_stride, to_ints(code) + 128);
  }
}

// Codes of the levels nearest to x / scale; halfway, the upper one. Calls visit(x, x / scale,
// level) for every lane of values.
template <class F, class Visit>
KVE_HD void nearest_codes(const GroupBlock& b, Coding coding, int bits, F scale, Visit visit) {
  // Such codings have 4 bits at most, which compilers cannot see.
  constexpr int kMostLevels = 16;
  const int n_levels = bits < 4 ? 1 << bits : kMostLevels;
  float levels[kMostLevels] = {};
  float middles[kMostLevels] = {};  // between a level and the one below
  for (int k = 0; k < n_levels; ++k) {
    levels[k] = level(coding, bits, static_cast<unsigned>(k));
    if (k > 0) middles[k] = (levels[k - 1] + levels[k]) / 2;
  }
  const F inverse = inverse_or_zero_lanes(scale);
  for (int i = 0; i < b.n; ++i) {
    const F x = row_of<F>(b, i);
    const F scaled = x * inverse;
    IntsOf<F> code{};
    F nearest = all_lanes<F>(levels[0]);
    for (int k = 1; k < n_levels; ++k) {
      const auto reached = scaled >= middles[k];
      code = reached ? IntsOf<F>{} + k : code;
      nearest = reached ? all_lanes<F>(levels[k]) : nearest;
    }
    visit(x, scaled, nearest);
    store_bytes<F>(b.codes + i * b.code_stride, code);
  }
}

// Codes without signs of the 8-bit floats nearest to magnitudes; ties to even, saturating.
template <int kMantissaBits, class F>
KVE_HD IntsOf<F> fp8_magnitudes(F magnitude) {
  using I = IntsOf<F>;
  constexpr int kShift = 23 - kMantissaBits;
  constexpr float kLeastNormal = kMantissaBits == 3 ? 0x1p-14f : 0x1p-29f;
  constexpr float kUnit =
      kMantissaBits == 3 ? 0x1p6f : 0x1p-8f;  // its last bit is a step below that
  constexpr int32_t kBelow = (kMantissaBits == 3 ? 112 : 97) << kMantissaBits;
  constexpr int32_t kLargest = kMantissaBits == 3 ? 0x7e : 0x7b;
  const I bits = lane_bits<I>(magnitude);
  const I odd = (bits >> kShift) & 1;
  const I normal = ((bits + ((1 << (kShift - 1)) - 1) + odd) >> kShift) - kBelow;
  const I subnormal = lane_bits<I>(magnitude + kUnit) - lane_bits<int32_t>(kUnit);
  const I code = magnitude < kLeastNormal ? subnormal : normal;
  return code < kLargest ? code : I{} + kLargest;
}

// Codes of the 8-bit floats nearest to x / scale.
template <int kMantissaBits, class F>
KVE_HD void fp8_codes(const GroupBlock& b, F scale) {
  using I = IntsOf<F>;
  const auto flat = scale == F{};
  const F divisor = flat ? all_lanes<F>(1) : scale;
  const I keep = flat ? I{} : I{} + 255;
  for (int i = 0; i < b.n; ++i) {
    const F scaled = row_of<F>(b, i) / divisor;
    const I sign = (lane_bits<I>(scaled) >> 31) & 128;
    const I code = fp8_magnitudes<kMantissaBits>(magnitudes(scaled)) | sign;
    store_bytes<F>(b.codes + i * b.code_stride, code & keep);
  }
}

}  // namespace kve
