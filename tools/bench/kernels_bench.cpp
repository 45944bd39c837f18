#include "kernels_bench.h"

#include <map>
#include <memory>

#include "base/thread_pool.h"

namespace kernels_bench {
namespace {

using benchmark::Counter;

Counter per_iteration(double amount) { return Counter(amount, Counter::kIsIterationInvariantRate); }

}  // namespace

std::vector<int64_t> thread_counts() {
  const int64_t all = kve::default_thread_count();
  return all == 1 ? std::vector<int64_t>{1} : std::vector<int64_t>{1, all};
}

kve::Backend& backend(int64_t threads) {
  static std::map<int64_t, std::unique_ptr<kve::Backend>> backends;
  auto& found = backends[threads];
  if (!found) found = kve::make_cpu_backend(static_cast<int>(threads));
  return *found;
}

const kve::MachineLimits& limits(int64_t threads) {
  static std::map<int64_t, kve::MachineLimits> measured;
  const auto found = measured.find(threads);
  if (found != measured.end()) return found->second;
  return measured[threads] = kve::machine_limits(static_cast<int>(threads));
}

float pseudo_random(uint64_t i) {
  return static_cast<float>((i * 0x9e3779b97f4a7c15u) >> 40) * 0x1p-23f - 1.0f;
}

std::vector<float> pseudo_random_values(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) values[i] = pseudo_random(i);
  return values;
}

void count_bytes(benchmark::State& state, double bytes, int64_t threads) {
  state.counters["GB/s"] = per_iteration(bytes * 1e-9);
  state.counters["of_read"] = per_iteration(bytes / limits(threads).read_bytes);
}

void count_operations(benchmark::State& state, double operations, int64_t threads, bool integers) {
  state.counters["Gop/s"] = per_iteration(operations * 1e-9);
  const kve::MachineLimits& best = limits(threads);
  if (integers) {
    state.counters["of_int8"] = per_iteration(operations / best.int8_ops);
  } else {
    state.counters["of_f32"] = per_iteration(operations / best.f32_ops);
  }
}

}  // namespace kernels_bench

BENCHMARK_MAIN();
