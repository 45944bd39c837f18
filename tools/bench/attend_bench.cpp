// Attention over caches of every codec: one query (decode) and 512 (prefill).
#include <cstring>
#include <string>

#include "attend_shape.h"
#include "base/memory.h"
#include "cache/registry.h"
#include "kernels_bench.h"

namespace kernels_bench {
namespace {

// A cache of one layer with `rows` tokens; all pages of a side are equal.
struct Cache {
  Cache(const kve::CodecSpec& codec, int rows) {
    const int n_pages = rows / kve::kPageTokens;
    const std::vector<float> source = pseudo_random_values(kve::kPageTokens * kWidth);
    kve::SideView sides[2];
    for (const bool values : {false, true}) {
      const kve::PageFormat format = kve::page_format(codec, kWidth, values);
      const size_t bytes = kve::page_bytes(format);
      std::byte* data =
          memory[values].get<std::byte>(bytes * static_cast<size_t>(kKvHeads * n_pages));
      std::vector<std::byte> scratch(kve::encode_scratch(format));
      kve::encode_rows(format, source.data(), kWidth, data, 0, kve::kPageTokens, scratch.data());
      for (int p = 0; p < kKvHeads * n_pages; ++p) {
        std::byte* page = data + static_cast<size_t>(p) * bytes;
        if (p > 0) std::memcpy(page, data, bytes);
        pages[values].push_back(
            {page, static_cast<int32_t>(bytes), static_cast<int16_t>(kve::kPageTokens), 0});
      }
      total_bytes += bytes * pages[values].size();
      sides[values].format = format;
      sides[values].width = sides[values].n_channels = sides[values].row_stride = kWidth;
    }
    for (int h = 0; h < kKvHeads; ++h) {
      for (const bool values : {false, true}) {
        sides[values].pages = {pages[values].data() + h * n_pages, static_cast<size_t>(n_pages)};
      }
      heads.push_back({sides[0], sides[1], n_pages * kve::kPageTokens, 0, 0});
    }
  }
  kve::Scratch memory[2];
  size_t total_bytes = 0;
  std::vector<kve::PageView> pages[2];
  std::vector<kve::HeadView> heads;
};

// "row_and_head": time per cached row and kv head.
void attend(benchmark::State& state) {
  const kve::CodecEntry& entry = kve::cache_codecs()[static_cast<size_t>(state.range(0))];
  const auto rows = static_cast<int>(state.range(1));
  const int64_t queries = state.range(2);
  const int64_t threads = state.range(3);
  const Cache cache(entry.spec, rows);
  const std::vector<float> q = pseudo_random_values(queries * kHeads * kWidth);
  std::vector<float> out(q.size());
  const kve::AttendTask task = {kve::ConstMat(q.data(), queries, kHeads * kWidth), cache.heads,
                                static_cast<int32_t>(rows - queries),
                                kve::Mat(out.data(), queries, kHeads * kWidth)};
  kve::Backend& device = backend(threads);
  for (auto _ : state) device.attend(kAttendParams, {&task, 1});
  state.SetLabel(std::string(entry.name));
  count_bytes(state, static_cast<double>(cache.total_bytes), threads);
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
  for (size_t codec = 0; codec < kve::cache_codecs().size(); ++codec) {
    const auto number = static_cast<int64_t>(codec);
    for (const int64_t threads : thread_counts()) {
      for (const int64_t rows :
           {1024, 8192, 131072}) {  // f16: of the second cache, the third, none
        bench->Args({number, rows, 1, threads});
        if (rows <= 8192) bench->Args({number, rows, 512, threads});
      }
    }
  }
}

BENCHMARK(attend)->Apply(attend_arguments)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kernels_bench
