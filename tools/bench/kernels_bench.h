// What the benchmarks of kernels share. Counters: "GB/s" of weights or cache rows, "Gop/s" (a
// multiply-add is two operations), and their shares of what the machine can do at best with as many
// threads: "of_read" (memory), "of_int8", "of_f32" (arithmetic). A share of memory above 1 means
// that the operands were in a cache.
//
// --benchmark_filter=REGEX chooses; names are those of BENCHMARK() and its arguments. KVENGINE_ISA
// chooses the instruction set.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/machine_limits.h"

namespace kernels_bench {

// 1 and all processors.
std::vector<int64_t> thread_counts();

// One for each number of threads, made on first use.
kve::Backend& backend(int64_t threads);
const kve::MachineLimits& limits(int64_t threads);

// In [-1, 1).
float pseudo_random(uint64_t i);
std::vector<float> pseudo_random_values(int64_t n);

// Per iteration.
void count_bytes(benchmark::State& state, double bytes, int64_t threads);
void count_operations(benchmark::State& state, double operations, int64_t threads,
                      bool integers = false);

}  // namespace kernels_bench
