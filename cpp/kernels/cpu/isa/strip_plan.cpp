#include <math.h>

#include "kernels/cpu/isa/strip_round.h"

namespace kve::KVE_ISA {

namespace {

// The middle of the raw numbers of a strip, and its level.
struct Middle {
  float bias;
  float lift;
};

}  // namespace

static Middle middle_of(StripLevels levels, int bits) {
  if (bits == 0) return {0, 0};
  if (levels == StripLevels::table) return {static_cast<float>(kDotBias), 0};
  const auto half = static_cast<float>(1 << (bits - 1));
  const bool centred = levels == StripLevels::centred;
  if (bits == 8) return {static_cast<float>(kDotBias), centred ? 0 : half};
  return centred ? Middle{half, 0} : Middle{half - 0.5f, half - 0.5f};
}

// Entries of the table as bytes with a common unit.
static void round_table(StripPlan& plan) {
  const StripSide& side = plan.side;
  plan.level_unit = 1;
  if (side.levels != StripLevels::table) return;
  const int n = 1 << side.bits;
  float top = 0;
  bool whole = true;
  for (int i = 0; i < n; ++i) {
    const float size = fabsf(side.table[i]);
    top = size > top ? size : top;
    whole = whole && side.table[i] == rintf(side.table[i]);
  }
  plan.level_unit = whole && top <= 127 ? 1 : top / 127;
  for (int i = 0; i < 16; ++i) {
    const float level = i < n && top > 0 ? rintf(side.table[i] / plan.level_unit) : 0;
    plan.table[i] = static_cast<int8_t>(static_cast<uint8_t>(static_cast<int>(level) + kDotBias));
  }
}

void fill_plan(StripPlan& plan) {
  const StripSide& side = plan.side;
  round_table(plan);
  const auto middle_at = [&](int64_t c) {
    const bool varies = side.strip_bits != nullptr && c < side.width;
    return middle_of(side.levels, varies ? side.strip_bits[c / 4] : side.bits);
  };
  for (int64_t c = 0; c < plan.padded; ++c) {
    const Middle middle = middle_at(c);
    plan.bias[c] = middle.bias;
    plan.lift[c] = middle.lift;
  }
  for (int64_t s = 0; s < strip_biases(plan.padded); ++s)
    plan.strip_bias[s] = middle_at(4 * s).bias;
  plan.has_rest = side.has_zero;
  for (int64_t c = 0; c < plan.padded; ++c) plan.has_rest = plan.has_rest || plan.lift[c] != 0;
  for (int64_t i = 0; !plan.has_rest && i < kRunPages * plan.n_params; ++i) plan.zero[i] = 0;
}

void load_run_params(const StripPlan& plan, const StripRun& run, int64_t token_group, bool lifted) {
  const StripSide& side = plan.side;
  static constexpr float kNoLift = 0;
  for (int32_t p = 0; p < run.n_pages; ++p) {
    float* scale = plan.scale + p * plan.n_params;
    float* zeros = plan.has_rest ? plan.zero + p * plan.n_params : nullptr;
    if (side.per_channel) {
      const ParamRow row = param_row(side, run.pages[p], token_group, 0, side.width);
      if (lifted) {
        load_params<kLanes>(row, side.scale_bytes, plan.level_unit, plan.padded, plan.lift, scale,
                            zeros);
      } else {
        load_params<0>(row, side.scale_bytes, plan.level_unit, plan.padded, &kNoLift, scale, zeros);
      }
      continue;
    }
    for (int64_t g = 0; g < plan.n_groups; ++g) {
      load_params<0>(param_row(side, run.pages[p], g, 0, run.rows[p]), side.scale_bytes,
                     plan.level_unit, kStripTokens, lifted ? plan.lift : &kNoLift,
                     scale + g * kStripTokens,
                     zeros == nullptr ? nullptr : zeros + g * kStripTokens);
    }
  }
}

}  // namespace kve::KVE_ISA
