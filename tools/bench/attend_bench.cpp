// Attention over caches of every codec: one query (decode) and 512 (prefill).
#include <cstring>
#include <string>

#include "base/memory.h"
#include "kernels_bench.h"

namespace kernels_bench {
namespace {

constexpr int kHeads = 9;
constexpr int kKvHeads = 3;
constexpr int kWidth = 64;

// A cache of one layer with `rows` tokens.
struct Cache {
  Cache(kve::CodecId id, int rows) {
    const kve::CacheCodec& codec = kve::codec(id);
    const int group = codec.default_group;
    page_bytes = codec.code_bytes(kve::kPageTokens, kWidth, group) +
                 codec.scale_bytes(kve::kPageTokens, kWidth, group);
    const int n_pages = rows / kve::kPageTokens;
    const std::vector<float> source = pseudo_random_values(kve::kPageTokens * kWidth);
    const size_t total = static_cast<size_t>(2 * kKvHeads * n_pages);
    std::byte* data = memory.get<std::byte>(page_bytes * total);
    for (size_t p = 0; p < total; ++p) {
      std::byte* page = data + p * page_bytes;
      if (p == 0) {
        codec.encode(source.data(), kWidth, page, 0, kve::kPageTokens, kWidth, group);
      } else {
        std::memcpy(page, data, page_bytes);
      }
      pages.push_back({page, kve::kPageTokens});
    }
    const auto side = [&](int index) {
      return kve::SideView{{id, group},
                           kWidth,
                           {pages.data() + index * n_pages, static_cast<size_t>(n_pages)},
                           nullptr,
                           0};
    };
    for (int h = 0; h < kKvHeads; ++h) {
      heads.push_back({side(2 * h), side(2 * h + 1), n_pages * kve::kPageTokens, 0});
    }
  }
  kve::Scratch memory;
  size_t page_bytes = 0;
  std::vector<kve::PageView> pages;
  std::vector<kve::HeadView> heads;
};

// "row_and_head": time per cached row and kv head.
void attend(benchmark::State& state) {
  const auto id = static_cast<kve::CodecId>(state.range(0));
  const auto rows = static_cast<int>(state.range(1));
  const int64_t queries = state.range(2);
  const int64_t threads = state.range(3);
  const Cache cache(id, rows);
  const std::vector<float> q = pseudo_random_values(queries * kHeads * kWidth);
  std::vector<float> out(q.size());
  const kve::AttendTask task = {kve::ConstMat(q.data(), queries, kHeads * kWidth), cache.heads,
                                static_cast<int32_t>(rows - queries),
                                kve::Mat(out.data(), queries, kHeads * kWidth)};
  const kve::AttendParams params = {.n_heads = kHeads,
                                    .n_kv_heads = kKvHeads,
                                    .key_dim = kWidth,
                                    .value_dim = kWidth,
                                    .scale = 0.125f,
                                    .precision = kve::Precision::fast};
  kve::Backend& device = backend(threads);
  for (auto _ : state) device.attend(params, {&task, 1});
  state.SetLabel(std::string(kve::codec(id).name));
  count_bytes(state, static_cast<double>(cache.page_bytes * cache.pages.size()), threads);
  // Causal: the average query sees half of the last `queries` rows.
  const double pairs =
      static_cast<double>(queries) * (static_cast<double>(rows) - static_cast<double>(queries) / 2);
  count_operations(state, pairs * kHeads * kWidth * 4, threads);
  state.counters["row_and_head"] = benchmark::Counter(
      static_cast<double>(kKvHeads) * rows,
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void attend_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"codec", "rows", "queries", "threads"});
  for (const kve::CacheCodec& codec : kve::cache_codecs()) {
    for (const int64_t threads : thread_counts()) {
      for (const int64_t rows :
           {1024, 8192, 131072}) {  // f16: of the second cache, the third, none
        bench->Args({static_cast<int64_t>(codec.id), rows, 1, threads});
        if (rows <= 8192) bench->Args({static_cast<int64_t>(codec.id), rows, 512, threads});
      }
    }
  }
}

BENCHMARK(attend)->Apply(attend_arguments)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kernels_bench
