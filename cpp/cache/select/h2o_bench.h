// H2O as a published long-context benchmark ran it: the prompt and the first step after it see
// everything, scores begin with that step, and nothing is freed: tokens are masked, each query head
// by scores of its own, and one that was masked may come back. Kept exactly, its off-by-one
// included, to reproduce those figures. cache/query_masks.h has what the heads see.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kve {

// A decode step whose query gave n keys, its own the last, the weights [n]. `scores` [n] of the
// steps before (0 for the newest key) become those after. Returns the mask [n + 1] of keys that the
// next step sees, its own the last: the newest `recent`, and the `heavy` of the highest scores.
std::vector<uint8_t> h2o_bench_step(std::span<const float> weights, int heavy, int recent,
                                    std::span<float> scores);

}  // namespace kve
