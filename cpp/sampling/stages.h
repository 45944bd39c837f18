// The list of sampling stages, in the order they are applied. To add one: a function in stages.cpp
// and a line in its table.
#pragma once

#include <span>
#include <string_view>

#include "sampling/candidates.h"
#include "sampling/sampler.h"

namespace kve {

struct SamplingStage {
  std::string_view name;
  bool shapes_logits;  // also applied before a greedy choice; the others only narrow a draw
  bool (*enabled)(const SamplingOptions&);
  void (*apply)(const SamplingOptions&, const TokenHistory&, Candidates&);
};

// logit_bias and penalties come first: they may index candidates by token.
std::span<const SamplingStage> sampling_stages();

}  // namespace kve
