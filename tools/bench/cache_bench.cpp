// Attention of one query, and of the last 512 of a prompt, over caches as presets build them:
// bases, sinks, coded pages and tails.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <string>

#include "attend_shape.h"
#include "base/memory.h"
#include "cache/kv_cache.h"
#include "kernels_bench.h"

namespace kernels_bench {
namespace {

constexpr int kChunk = 512;  // rows of one append

const std::vector<std::string>& presets() {
  static const std::vector<std::string> kNames = {"f16",   "best8",  "best4",  "best3",
                                                  "best2", "q8_0",   "q4_0",   "kivi4",
                                                  "kivi2", "turbo4", "turbo2", "decoquant4"};
  return kNames;
}

// Values of falling variance, so that components of a basis differ in their bits.
std::vector<float> rows_of(int n, int heads, uint64_t seed) {
  std::vector<float> rows = pseudo_random_values(int64_t{n} * heads * kWidth);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = pseudo_random(i + seed) * std::exp2(-static_cast<float>(i % kWidth) / 16.0f);
  }
  return rows;
}

kve::KvCache make_cache(const std::string& preset, int rows, int layers) {
  kve::Rotation rotation;
  for (int i = 0; i < kWidth / 2; ++i) {
    rotation.frequencies.push_back(std::pow(1e5, -2.0 * i / kWidth));
  }
  const kve::LayerShape shape = {kKvHeads, kWidth, kWidth, 0,
                                 std::make_shared<const kve::Rotation>(rotation)};
  kve::KvCache cache(kve::CacheSpec::parse(preset),
                     std::vector<kve::LayerShape>(static_cast<size_t>(layers), shape));
  kve::Backend& device = backend(thread_counts().back());
  for (int done = 0; done < rows;) {
    const int n = std::min(kChunk, rows - done);
    for (int layer = 0; layer < layers; ++layer) {
      const auto seed = static_cast<uint64_t>(done) * 1000003 + static_cast<uint64_t>(layer);
      const std::vector<float> k = rows_of(n, kKvHeads, seed);
      const std::vector<float> v = rows_of(n, kKvHeads, seed + 77);
      const std::vector<float> q = rows_of(n, kHeads, seed + 99);
      cache.append(device, layer, kve::ConstMat(k.data(), n, kKvHeads * kWidth),
                   kve::ConstMat(v.data(), n, kKvHeads * kWidth));
      if (cache.wants_queries(layer)) {
        cache.observe_queries(layer, kve::ConstMat(q.data(), n, kHeads * kWidth));
      }
    }
    done += n;
    cache.commit(device, n, done < rows);
  }
  return cache;
}

// All layers one after the other, as a model reads them. "row_and_head": time per cached row and kv
// head, times the number of threads. "least": of the fastest pass, which other processes disturb
// little.
void attend_cached(benchmark::State& state, int queries) {
  const std::string& preset = presets()[static_cast<size_t>(state.range(0))];
  const auto rows = static_cast<int>(state.range(1));
  const auto layers = static_cast<int>(state.range(2));
  const int64_t threads = state.range(3);
  const kve::KvCache cache = make_cache(preset, rows, layers);
  const std::vector<float> q = pseudo_random_values(int64_t{queries} * kHeads * kWidth);
  std::vector<float> out(q.size());
  kve::Backend& device = backend(threads);
  using Clock = std::chrono::steady_clock;
  Clock::duration least = Clock::duration::max();
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    for (int layer = 0; layer < layers; ++layer) {
      const kve::AttendTask task = {kve::ConstMat(q.data(), queries, kHeads * kWidth),
                                    cache.view(layer), rows - queries,
                                    kve::Mat(out.data(), queries, kHeads * kWidth)};
      device.attend(kAttendParams, {&task, 1});
    }
    least = std::min(least, Clock::now() - start);
  }
  state.counters["least_us"] = std::chrono::duration<double, std::micro>(least).count();
  state.SetLabel(preset);
  count_bytes(state, static_cast<double>(cache.stats().bytes), threads);
  state.counters["row_and_head"] = benchmark::Counter(
      static_cast<double>(kKvHeads) * rows * layers / static_cast<double>(threads),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void cached(benchmark::State& state) { attend_cached(state, 1); }
void cached_prompt(benchmark::State& state) { attend_cached(state, kChunk); }

void cached_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"preset", "rows", "layers", "threads"});
  for (size_t preset = 0; preset < presets().size(); ++preset) {
    const auto number = static_cast<int64_t>(preset);
    bench->Args({number, 7936, 1, 1});  // of the second cache
    for (const int64_t threads : thread_counts()) {
      for (const int64_t rows : {2048, 7936}) bench->Args({number, rows, 30, threads});
    }
  }
}

void prompt_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"preset", "rows", "layers", "threads"});
  for (size_t preset = 0; preset < presets().size(); ++preset) {
    for (const int64_t threads : thread_counts()) {
      for (const int64_t rows : {2048, 7936}) {
        bench->Args({static_cast<int64_t>(preset), rows, 1, threads});
      }
    }
  }
}

BENCHMARK(cached_prompt)->Apply(prompt_arguments)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(cached)->Apply(cached_arguments)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kernels_bench
