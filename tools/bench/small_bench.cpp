// Operations that cost little each but are called many times a step, and the cost of handing work
// to threads.
#include <chrono>
#include <cmath>

#include "base/memory.h"
#include "kernels/cpu/dispatch.h"
#include "kernels_bench.h"

namespace kernels_bench {
namespace {

using kve::ConstMat;
using kve::Mat;

// Arguments: rows, columns, threads.
struct Operands {
  explicit Operands(const benchmark::State& state)
      : rows(state.range(0)),
        cols(state.range(1)),
        threads(state.range(2)),
        a(pseudo_random_values(rows * cols)),
        b(a),
        x(a.data(), rows, cols),
        y(b.data(), rows, cols) {}
  int64_t rows;
  int64_t cols;
  int64_t threads;
  std::vector<float> a;
  std::vector<float> b;
  Mat x;
  Mat y;
};

void small_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "cols", "threads"});
  for (const int64_t threads : thread_counts()) {
    for (const int64_t cols : {576, 2048}) {
      for (const int64_t rows : {1, 512}) bench->Args({rows, cols, threads});
    }
  }
}

// Time per value.
void count_values(benchmark::State& state, const Operands& operands) {
  state.counters["value"] = benchmark::Counter(
      static_cast<double>(operands.rows * operands.cols),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void rms_norm(benchmark::State& state) {
  Operands o(state);
  const std::vector<float> weight(static_cast<size_t>(o.cols), 1.0f);
  kve::Backend& device = backend(o.threads);
  for (auto _ : state) device.rms_norm(o.x, weight.data(), 1e-5f, o.y);
  count_values(state, o);
}

void rope(benchmark::State& state) {
  Operands o(state);
  const std::vector<float> cos(static_cast<size_t>(o.rows * 32), 0.6f);
  const std::vector<float> sin(static_cast<size_t>(o.rows * 32), 0.8f);
  kve::Backend& device = backend(o.threads);
  for (auto _ : state) {
    device.rope(o.x, 64, kve::RopeLayout::half_split, ConstMat(cos.data(), o.rows, 32),
                ConstMat(sin.data(), o.rows, 32));
  }
  count_values(state, o);
}

void gated(benchmark::State& state) {
  Operands o(state);
  kve::Backend& device = backend(o.threads);
  // gate = silu(gate) * up has a stable fixed point here: values stay of a size that costs nothing
  // extra from call to call.
  for (size_t i = 0; i < o.a.size(); ++i) {
    o.a[i] = -std::abs(o.a[i]);
    o.b[i] = 1 + std::exp(-o.a[i]);
  }
  for (auto _ : state) device.gated(kve::Activation::silu, o.x, o.y);
  count_values(state, o);
}

void add(benchmark::State& state) {
  Operands o(state);
  const std::vector<float> zeros(o.a.size());
  kve::Backend& device = backend(o.threads);
  for (auto _ : state) device.add(o.x, ConstMat(zeros.data(), o.rows, o.cols));
  count_values(state, o);
}

void softcap(benchmark::State& state) {
  Operands o(state);
  kve::Backend& device = backend(o.threads);
  for (auto _ : state) device.softcap(30.0f, o.x);
  count_values(state, o);
}

// Activations as products with few inputs want them; one thread. Arguments: rows, columns, planes.
void quantize(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const int64_t cols = state.range(1);
  const auto planes = static_cast<int>(state.range(2));
  const kve::Kernels& kernels = kve::choose_kernels({});
  const std::vector<float> x = pseudo_random_values(rows * cols);
  kve::Scratch codes;
  std::byte* out =
      codes.get<std::byte>(kernels.vector_bytes(cols) * static_cast<size_t>(rows * planes));
  for (auto _ : state) {
    kernels.quantize_rows(x.data(), cols, rows, cols, planes, out);
    benchmark::ClobberMemory();
  }
  state.counters["value"] = benchmark::Counter(
      static_cast<double>(rows * cols),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void quantize_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "cols", "planes"});
  for (const int64_t cols : {576, 2048, 5632}) {
    for (const int64_t planes : {1, 2}) bench->Args({1, cols, planes});
  }
}

// One task of 2 us for every thread, long enough for all of them to take part. "overhead" is what
// handing out and waiting adds. Argument: threads.
void fork_join(benchmark::State& state) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::nanoseconds kTask(2000);
  kve::ThreadPool& pool = backend(state.range(0)).pool();
  const auto start = Clock::now();
  for (auto _ : state) {
    pool.parallel(pool.size(), [&](int64_t) {
      const auto begin = Clock::now();
      while (Clock::now() - begin < kTask) {
      }
    });
  }
  const std::chrono::duration<double> total = Clock::now() - start;
  const std::chrono::duration<double> tasks = kTask * state.iterations();
  state.counters["overhead"] = (total - tasks).count() / static_cast<double>(state.iterations());
}

void fork_join_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgName("threads");
  for (const int64_t threads : thread_counts()) bench->Arg(threads);
}

BENCHMARK(rms_norm)->Apply(small_arguments)->UseRealTime();
BENCHMARK(rope)->Apply(small_arguments)->UseRealTime();
BENCHMARK(gated)->Apply(small_arguments)->UseRealTime();
BENCHMARK(add)->Apply(small_arguments)->UseRealTime();
BENCHMARK(softcap)->Apply(small_arguments)->UseRealTime();
BENCHMARK(quantize)->Apply(quantize_arguments);
BENCHMARK(fork_join)->Apply(fork_join_arguments)->UseRealTime();

}  // namespace
}  // namespace kernels_bench
