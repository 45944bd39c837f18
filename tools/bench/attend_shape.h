// One layer of SmolLM2-135M, which the benchmarks of attention are about.
#pragma once

#include "kernels/backend.h"

namespace kernels_bench {

constexpr int kHeads = 9;
constexpr int kKvHeads = 3;
constexpr int kWidth = 64;

constexpr kve::AttendParams kAttendParams = {.n_heads = kHeads,
                                             .n_kv_heads = kKvHeads,
                                             .key_dim = kWidth,
                                             .value_dim = kWidth,
                                             .scale = 0.125f,
                                             .precision = kve::Precision::fast};

}  // namespace kernels_bench
