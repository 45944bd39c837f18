// Groups of few rows: lanes are consecutive values of one group, where group_code.h has a group to
// a lane. The bits are the same.
#pragma once

#include "formats/cache/group_code.h"

namespace kve {

// Codings whose parameters do not depend on the order in which values are added up.
KVE_HD constexpr bool has_no_sums(const GroupCoding& c) {
  return c.fit == Fit::range && c.coding != Coding::iq4_nl;
}

// The first of x [n] that equals `value`, one of them: zeros differ in their signs.
KVE_HD float first_equal(const float* x, int n, float value) {
  int i = 0;
  while (i < n - 1 && x[i] != value) ++i;
  return x[i];
}

// `many` holds whole vectors of the group's values, `rest` what is left, right behind them.
KVE_HD LaneRange<float> range_along(const GroupBlock& many, const GroupBlock& rest) {
  const LaneRange<Floats> lanes = range_of<Floats>(many);
  float lows[kVectorLanes];
  float highs[kVectorLanes];
  store_lanes(lows, lanes.low);
  store_lanes(highs, lanes.high);
  LaneRange<float> range = {lows[0], highs[0]};
  for (int l = 1; l < kVectorLanes; ++l) {
    range.low = smaller(lows[l], range.low);
    range.high = larger(highs[l], range.high);
  }
  for (int i = 0; i < rest.n; ++i) {
    range.low = smaller(rest.values[i], range.low);
    range.high = larger(rest.values[i], range.high);
  }
  const int n = kVectorLanes * many.n + rest.n;
  if (range.low == 0) range.low = first_equal(many.values, n, 0);
  if (range.high == 0) range.high = first_equal(many.values, n, 0);
  return range;
}

KVE_HD LaneExtreme<float> extreme_along(const GroupBlock& many, const GroupBlock& rest) {
  Floats most{};
  for (int i = 0; i < many.n; ++i) most = larger(magnitudes(row_of<Floats>(many, i)), most);
  float lanes[kVectorLanes];
  store_lanes(lanes, most);
  float magnitude = 0;
  for (const float lane : lanes) magnitude = larger(lane, magnitude);
  for (int i = 0; i < rest.n; ++i) magnitude = larger(magnitudes(rest.values[i]), magnitude);
  int i = 0;
  while (i < kVectorLanes * many.n + rest.n - 1 && magnitudes(many.values[i]) != magnitude) ++i;
  return {magnitude, many.values[i]};
}

// Codes x [n] as encode_group does.
KVE_HD GroupParams encode_run(const GroupCoding& c, const float* x, int n, uint8_t* codes) {
  const int whole = n / kVectorLanes * kVectorLanes;
  if (whole == 0 || !has_no_sums(c)) return encode_group(c, x, n, codes);
  const GroupBlock many = {x, kVectorLanes, n / kVectorLanes, codes, kVectorLanes};
  const GroupBlock rest = {x + whole, 1, n - whole, codes + whole, 1};
  const LaneParams<float> params = has_zero(c.coding)
                                       ? range_params(c, top_code(c.bits), range_along(many, rest))
                                       : extreme_params(c, extreme_along(many, rest));
  const LaneParams<Floats> lanes = {all_lanes<Floats>(params.scale),
                                    all_lanes<Floats>(params.zero)};
  codes_for(c, lanes, many);
  if (rest.n > 0) codes_for(c, params, rest);
  GroupParams stored{};
  store_params(c.scale, params, &stored);
  return stored;
}

}  // namespace kve
