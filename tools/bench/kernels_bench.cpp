// Speed of the CPU kernels: matrix products at decode (1 row) and prefill (512 rows) shapes, and
// attention over a cache. Counters: weight or cache bytes per second, operations (2 per
// multiply-add) per second. KVENGINE_ISA chooses the instruction set.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "base/half.h"
#include "base/memory.h"
#include "kernels/backend.h"

namespace {

using kve::Backend;

Backend& backend(int64_t threads) {
  static std::vector<std::unique_ptr<Backend>> backends(17);
  auto& found = backends.at(static_cast<size_t>(threads));
  if (!found) found = kve::make_cpu_backend(static_cast<int>(threads));
  return *found;
}

float pseudo_random(uint64_t i) {
  return static_cast<float>((i * 0x9e3779b97f4a7c15u) >> 40) * 0x1p-23f - 1.0f;
}

// Enough copies of one matrix that a pass over all of them does not fit a cache.
struct Weights {
  Weights(kve::WeightType type, int64_t rows, int64_t cols, size_t least_bytes) {
    const size_t row_bytes = kve::row_bytes(type, cols);
    const size_t bytes = row_bytes * static_cast<size_t>(rows);
    const size_t copies = bytes >= least_bytes ? 1 : least_bytes / bytes + 1;
    std::byte* data = memory.get<std::byte>(bytes * copies);
    std::vector<float> row(static_cast<size_t>(cols));
    for (size_t i = 0; i < row.size(); ++i) row[i] = pseudo_random(i);
    kve::format(type).encode(row.data(), data, cols);
    for (size_t r = 1; r < copies * static_cast<size_t>(rows); ++r) {
      std::memcpy(data + r * row_bytes, data, row_bytes);
    }
    for (size_t c = 0; c < copies; ++c) {
      weights.push_back({type, rows, cols, row_bytes, data + c * bytes});
    }
  }
  kve::Scratch memory;
  std::vector<kve::Weight> weights;
};

struct Shape {
  int64_t rows;
  int64_t cols;
};
constexpr Shape kShapes[] = {{576, 576}, {1536, 576}, {576, 1536}, {49152, 576}, {2048, 2048}};

// Arguments: type, shape, tokens, threads, precision.
void matmul(benchmark::State& state) {
  const auto type = static_cast<kve::WeightType>(state.range(0));
  const Shape shape = kShapes[state.range(1)];
  const int64_t tokens = state.range(2);
  const auto precision = static_cast<kve::Precision>(state.range(4));
  Backend& device = backend(state.range(3));
  const Weights weights(type, shape.rows, shape.cols, tokens == 1 ? 64u << 20 : 0);
  std::vector<float> x(static_cast<size_t>(tokens * shape.cols));
  for (size_t i = 0; i < x.size(); ++i) x[i] = pseudo_random(i);
  std::vector<float> y(static_cast<size_t>(tokens * shape.rows));
  size_t next = 0;
  for (auto _ : state) {
    const kve::Product product = {&weights.weights[next], kve::Mat(y.data(), tokens, shape.rows),
                                  nullptr};
    device.matmul(kve::ConstMat(x.data(), tokens, shape.cols), {&product, 1}, precision);
    next = (next + 1) % weights.weights.size();
  }
  const auto values = static_cast<double>(shape.rows * shape.cols);
  state.SetLabel(std::string(kve::format(type).name) + " " + std::to_string(shape.rows) + "x" +
                 std::to_string(shape.cols));
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(weights.weights[0].row_bytes) * static_cast<double>(shape.rows) * 1e-9,
      benchmark::Counter::kIsIterationInvariantRate);
  state.counters["Gop/s"] = benchmark::Counter(2e-9 * values * static_cast<double>(tokens),
                                               benchmark::Counter::kIsIterationInvariantRate);
}

void matmul_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"type", "shape", "tokens", "threads", "precision"});
  const auto fast = static_cast<int64_t>(kve::Precision::fast);
  const auto exact = static_cast<int64_t>(kve::Precision::exact);
  for (const kve::WeightType type :
       {kve::WeightType::q4_1, kve::WeightType::q4_0, kve::WeightType::q8_0, kve::WeightType::q4_k,
        kve::WeightType::q6_k, kve::WeightType::f16}) {
    for (int64_t shape = 0; shape < 5; ++shape) {
      for (const int64_t threads : {1, 2}) {
        const auto id = static_cast<int64_t>(type);
        bench->Args({id, shape, 1, threads, fast});
        if (shape != 3) bench->Args({id, shape, 510, threads, fast});
        if (shape != 3) bench->Args({id, shape, 64, threads, exact});
      }
    }
  }
}

// A cache of one layer: n_kv_heads heads of 64 values and `rows` tokens.
struct Cache {
  Cache(kve::CodecId id, int n_kv_heads, int rows, int width) {
    const kve::CacheCodec& codec = kve::codec(id);
    const int group = codec.default_group;
    page_bytes = codec.code_bytes(kve::kPageTokens, width, group) +
                 codec.scale_bytes(kve::kPageTokens, width, group);
    const int n_pages = rows / kve::kPageTokens;
    std::vector<float> source(static_cast<size_t>(kve::kPageTokens) * static_cast<size_t>(width));
    for (size_t i = 0; i < source.size(); ++i) source[i] = pseudo_random(i);
    const size_t total = static_cast<size_t>(2 * n_kv_heads * n_pages);
    std::byte* data = memory.get<std::byte>(page_bytes * total);
    for (size_t p = 0; p < total; ++p) {
      std::byte* page = data + p * page_bytes;
      if (p == 0) {
        codec.encode(source.data(), width, page, 0, kve::kPageTokens, width, group);
      } else {
        std::memcpy(page, data, page_bytes);
      }
      pages.push_back({page, kve::kPageTokens});
    }
    const auto side = [&](int index) {
      return kve::SideView{{id, group},
                           width,
                           {pages.data() + index * n_pages, static_cast<size_t>(n_pages)},
                           nullptr,
                           0};
    };
    for (int h = 0; h < n_kv_heads; ++h) {
      heads.push_back({side(2 * h), side(2 * h + 1), n_pages * kve::kPageTokens, 0});
    }
  }
  kve::Scratch memory;
  size_t page_bytes = 0;
  std::vector<kve::PageView> pages;
  std::vector<kve::HeadView> heads;
};

// Arguments: codec, cache rows, queries, threads. 9 heads on 3, 64 values each. Also counts the
// time per cached row and kv head.
void attend(benchmark::State& state) {
  const auto id = static_cast<kve::CodecId>(state.range(0));
  const auto rows = static_cast<int>(state.range(1));
  const int64_t queries = state.range(2);
  const Cache cache(id, 3, rows, 64);
  std::vector<float> q(static_cast<size_t>(queries * 576));
  for (size_t i = 0; i < q.size(); ++i) q[i] = pseudo_random(i);
  std::vector<float> out(q.size());
  const kve::AttendTask task = {kve::ConstMat(q.data(), queries, 576), cache.heads,
                                static_cast<int32_t>(rows - queries),
                                kve::Mat(out.data(), queries, 576)};
  const kve::AttendParams params = {
      .n_heads = 9, .n_kv_heads = 3, .key_dim = 64, .value_dim = 64, .scale = 0.125f};
  Backend& device = backend(state.range(3));
  for (auto _ : state) device.attend(params, {&task, 1});
  state.SetLabel(std::string(kve::codec(id).name));
  const double bytes = static_cast<double>(cache.page_bytes * cache.pages.size());
  // Causal: the average query sees half of the last `queries` rows.
  const double pairs =
      static_cast<double>(queries) * (static_cast<double>(rows) - static_cast<double>(queries) / 2);
  state.counters["GB/s"] =
      benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["Gop/s"] =
      benchmark::Counter(pairs * 9 * 64 * 4 * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["row_and_head"] = benchmark::Counter(
      3.0 * rows, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void attend_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"codec", "rows", "queries", "threads"});
  for (const kve::CacheCodec& codec : kve::cache_codecs()) {
    for (const int64_t threads : {1, 2}) {
      bench->Args({static_cast<int64_t>(codec.id), 8192, 1, threads});
      bench->Args({static_cast<int64_t>(codec.id), 8192, 512, threads});
    }
  }
}

}  // namespace

BENCHMARK(matmul)->Apply(matmul_arguments)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(attend)->Apply(attend_arguments)->UseRealTime()->Unit(benchmark::kMicrosecond);

BENCHMARK_MAIN();
