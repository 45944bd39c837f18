// Groups of values that share a scale, and their codes: one byte each, before anything packs them.
// value = decode_scale(scale) * level(code) + zero.
//
//   asym     scale = (max - min) / (2^bits - 1), zero = min (FlexGen arXiv 2303.06865, KIVI arXiv
//            2402.02750); codes round half to even. A constant group has scale 0 and codes 0. With
//            Fit::search: group_fit.h.
//   sym      scale = max |x| / (2^(bits - 1) - 1).
//   ggml's   as ggml's references (quantize_row_*_ref) code a block: with scales before they are
//            rounded to binary16, and with ggml's own roundings. iq4_nl refits its scale to the
//            codes, weighted by squares.
//   lloyd    Fit::norm: scale = |x| / sqrt(n), TurboQuant's (arXiv 2504.19874) if x is rotated.
//            Fit::energy and Fit::least: codes c of x / rms(x), scale <x,x> / <x,c> or
//            <x,c> / <c,c>. One bit with Fit::energy is the sign and the scale of QJL (arXiv
//            2406.03482), where m = n and the projection is orthogonal.
//   nf4, e4m3, e5m2   scale = max |x| / the largest level.
// Unless said otherwise, codes are those nearest to x for the scale and the zero as stored. Scales
// and zeros saturate at +-65504 (binary16) or 15360 (log8); no finite input gives NaN.
#pragma once

#include "formats/cache/codec_math.h"
#include "formats/cache/group_fit.h"
#include "formats/cache/group_scale.h"
#include "formats/cache/lane_codes.h"
#include "formats/cache/levels.h"

namespace kve {

enum class Fit : uint8_t {
  range,   // the coding's own rule; all but lloyd
  search,  // asym: least squared error of several clipped ranges
  norm,    // the others: lloyd
  energy,
  least,
};

struct GroupCoding {
  Coding coding = Coding::asym;
  uint8_t bits = 4;
  Fit fit = Fit::range;
  ScaleFormat scale = ScaleFormat::half;
  bool operator==(const GroupCoding&) const = default;
};

// Whether the parts go together; the functions below take nothing else. ggml's scales have signs
// and are binary16 by definition.
KVE_HD constexpr bool is_valid(const GroupCoding& c) {
  if (!is_valid_bits(c.coding, c.bits)) return false;
  if (is_ggml(c.coding) && c.scale != ScaleFormat::half) return false;
  if (c.coding == Coding::lloyd) return c.fit != Fit::range && c.fit != Fit::search;
  return c.fit == Fit::range || (c.fit == Fit::search && c.coding == Coding::asym);
}

// Codes for parameters, which need not be rounded. `visit` is for codings with nearest_codes.
template <class F, class Visit>
KVE_HD void codes_for(const GroupCoding& c, const LaneParams<F>& params, const GroupBlock& b,
                      Visit visit) {
  const int middle = 1 << (c.bits - 1);
  const float top = static_cast<float>(2 * middle - 1);
  const float half = static_cast<float>(middle);
  switch (c.coding) {
    case Coding::asym:
      return divide_codes(b, params, F{}, all_lanes<F>(top), 0);
    case Coding::sym:
      return divide_codes(b, params, all_lanes<F>(1.0f - half), all_lanes<F>(half - 1.0f), middle);
    case Coding::q8_0:
      return round_away_codes(b, params);
    case Coding::q5_1:
    case Coding::q4_1:
      return truncate_codes(b, params, 0.5f, top);
    case Coding::q5_0:
    case Coding::q4_0:
      return truncate_codes(b, params, half + 0.5f, top);
    case Coding::iq4_nl:
    case Coding::lloyd:
    case Coding::nf4:
      return nearest_codes(b, c.coding, c.bits, params.scale, visit);
    case Coding::e4m3:
      return fp8_codes<3>(b, params.scale);
    case Coding::e5m2:
      return fp8_codes<2>(b, params.scale);
  }
}
template <class F>
KVE_HD void codes_for(const GroupCoding& c, const LaneParams<F>& params, const GroupBlock& b) {
  codes_for(c, params, b, [](F, F, F) {});
}

KVE_HD float top_code(int bits) { return static_cast<float>((1 << bits) - 1); }

// Parameters of codings with a zero, from the range of a group with codes 0 to `top`. Those of ggml
// are not rounded yet, but within what binary16 holds; others are as stored.
template <class F>
KVE_HD LaneParams<F> range_params(const GroupCoding& c, F top, const LaneRange<F>& range) {
  const F most = all_lanes<F>(half_to_float(kLargestHalf));
  const F scale = (range.high - range.low) / top;
  if (is_ggml(c.coding)) return {smaller(scale, most), limit_lanes(range.low, -most, most)};
  return {round_to_scale(c.scale, scale), round_to_half(range.low)};
}

// The same of codings without a zero, from the value of largest magnitude.
template <class F>
KVE_HD LaneParams<F> extreme_params(const GroupCoding& c, const LaneExtreme<F>& extreme) {
  if (is_ggml(c.coding)) {
    const F most = all_lanes<F>(half_to_float(kLargestHalf));
    const F scale = c.coding == Coding::q8_0 ? extreme.magnitude / 127.0f
                                             : extreme.value / level(c.coding, c.bits, 0);
    return {limit_lanes(scale, -most, most), F{}};
  }
  float largest_level = 1;
  if (c.coding == Coding::sym) largest_level = static_cast<float>((1 << (c.bits - 1)) - 1);
  if (c.coding == Coding::e4m3 || c.coding == Coding::e5m2) largest_level = 1.75f;
  return {round_to_scale(c.scale, extreme.magnitude / largest_level), F{}};
}

// iq4_nl: a scale from the value of largest magnitude, codes, and the scale that suits them best by
// least squares weighted with x^2. Blocks below 1e-15 become zeros, whose codes ggml sets to 0.
template <class F>
KVE_HD LaneParams<F> encode_iq4_nl(const GroupCoding& c, const GroupBlock& b) {
  const LaneParams<F> first = extreme_params(c, extreme_of<F>(b));
  F common{};
  F squares{};
  codes_for(c, first, b, [&](F x, F, F q) {
    const F weighted = x * x * q;
    common += weighted * x;
    squares += weighted * q;
  });
  const F most = all_lanes<F>(half_to_float(kLargestHalf));
  const F refitted = common / (squares > F{} ? squares : all_lanes<F>(1));
  // Squares of huge values leave the range of floats: then the first scale stays.
  F scale = magnitudes(refitted) < 0x1p127f ? limit_lanes(refitted, -most, most) : first.scale;
  const IntsOf<F> keep = extreme_of<F>(b).magnitude < 1e-15f ? IntsOf<F>{} : IntsOf<F>{} + 255;
  scale = keep == 0 ? F{} : scale;
  for (int i = 0; i < b.n; ++i) {
    uint8_t* codes = b.codes + i * b.code_stride;
    store_bytes<F>(codes, load_bytes<F>(codes) & keep);
  }
  return {scale, F{}};
}

// lloyd: codes of x / rms, and the scale that keeps the energy or the least squared error.
template <class F>
KVE_HD LaneParams<F> encode_centroids(const GroupCoding& c, const GroupBlock& b) {
  const LaneParams<F> rms = {root_mean_square<F>(b), F{}};
  F common{};
  F values{};
  F centroids{};
  codes_for(c, rms, b, [&](F, F y, F q) {
    common += y * q;
    values += y * y;
    centroids += q * q;
  });
  const F above = c.fit == Fit::energy ? values : common;
  const F below = c.fit == Fit::energy ? common : centroids;
  return {rms.scale * (above / (below > F{} ? below : all_lanes<F>(1))), F{}};
}

// asym: codes over the range, of bits that may differ between lanes.
template <class F>
KVE_HD LaneParams<F> encode_ranges(const GroupCoding& c, const LaneBits<F>& bits,
                                   const GroupBlock& b) {
  const LaneRange<F> range = range_of<F>(b);
  LaneParams<F> params = range_params(c, bits.top, range);
  if (c.fit == Fit::search) params = search_params(b, bits, c.scale, range, params);
  divide_codes(b, params, F{}, bits.top, 0);
  return params;
}

// Parameters of as many groups as F has lanes, as they are stored.
template <class F>
KVE_HD void store_params(ScaleFormat format, const LaneParams<F>& params, GroupParams* out) {
  float scales[kLanesOf<F>];
  float zeros[kLanesOf<F>];
  store_lanes(scales, params.scale);
  store_lanes(zeros, params.zero);
  for (int l = 0; l < kLanesOf<F>; ++l) {
    out[l].scale = store_scale(format, scales[l]);
    out[l].zero = saturate_to_half(zeros[l]);
  }
}

// Codes, and parameters to `out`, of as many groups side by side as F has lanes.
template <class F>
KVE_HD void encode_lanes(const GroupCoding& c, const GroupBlock& b, GroupParams* out) {
  LaneParams<F> params;
  if (c.coding == Coding::asym) {
    params =
        encode_ranges<F>(c, {all_lanes<F>(top_code(c.bits)), all_lanes<F>(least_clip(c.bits))}, b);
  } else if (c.coding == Coding::iq4_nl) {
    params = encode_iq4_nl<F>(c, b);
  } else if (c.fit == Fit::energy || c.fit == Fit::least) {
    params = encode_centroids<F>(c, b);
  } else {
    if (c.coding == Coding::lloyd) {
      params = {round_to_scale(c.scale, root_mean_square<F>(b)), F{}};
    } else if (has_zero(c.coding)) {
      params = range_params(c, all_lanes<F>(top_code(c.bits)), range_of<F>(b));
    } else {
      params = extreme_params(c, extreme_of<F>(b));
    }
    codes_for(c, params, b);
  }
  store_params(c.scale, params, out);
}

// Codes x [n], finite, n >= 1, to codes [n]. encode_groups gives the same bits sooner.
KVE_HD GroupParams encode_group(const GroupCoding& c, const float* x, int n, uint8_t* codes) {
  GroupParams params{};
  encode_lanes<float>(c, {x, 1, n, codes, 1}, &params);
  return params;
}

// Codes `n_groups` groups side by side; params [n_groups].
KVE_HD void encode_groups(const GroupCoding& c, const GroupBlock& b, int n_groups,
                          GroupParams* params) {
  int g = 0;
  for (; g + kVectorLanes <= n_groups; g += kVectorLanes) {
    encode_lanes<Floats>(c, groups_from(b, g), params + g);
  }
  for (; g < n_groups; ++g) encode_lanes<float>(c, groups_from(b, g), params + g);
}

// asym: codes as many groups as there are lanes, each with its own number of bits (1 to 8).
KVE_HD void encode_mixed_ranges(const GroupCoding& c, const uint8_t* bits, const GroupBlock& b,
                                GroupParams* params) {
  float tops[kVectorLanes];
  float clips[kVectorLanes];
  for (int l = 0; l < kVectorLanes; ++l) {
    tops[l] = top_code(bits[l]);
    clips[l] = least_clip(bits[l]);
  }
  const LaneBits<Floats> lanes = {load_lanes<Floats>(tops), load_lanes<Floats>(clips)};
  store_params(c.scale, encode_ranges<Floats>(c, lanes, b), params);
}

// Codes of x [n] for parameters that are given, such as a scale shared with other groups.
KVE_HD void encode_with(const GroupCoding& c, GroupParams params, const float* x, int n,
                        uint8_t* codes) {
  const LaneParams<float> lane = {decode_scale(c.scale, params.scale),
                                  has_zero(c.coding) ? half_to_float(params.zero) : 0.0f};
  codes_for(c, lane, {x, 1, n, codes, 1});
}

}  // namespace kve
