// Whole models on the backend beside the CPU: the tiny ones of every architecture. Emulation takes
// its time, so that it has one of each, and one token alone.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/registry.h"
#include "engine/tiny_model.h"
#include "gguf/gguf_file.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_testing.h"
#include "models/decoder.h"

namespace kve::cuda {
namespace {

// The programs for a GPU may run elsewhere than they were built.
std::filesystem::path tiny_folder() {
  const char* fixtures = std::getenv("KVENGINE_TEST_FIXTURES");
  return std::filesystem::path(fixtures != nullptr ? fixtures : KVE_TEST_FIXTURES) / "tiny";
}

class CudaModelTest : public CudaTest {
 protected:
  // Of n_tokens, read up to 40 at a time and the last `n_alone` one by one: those of the last token
  // of each pass, [passes][vocab_size]. path: how pages are read at the end.
  static std::vector<float> logits(Backend& backend, const std::filesystem::path& path,
                                   std::string_view cache_spec, int n_tokens, bool exact,
                                   int n_alone, ReadPath* read_path, CacheStats* stats = nullptr) {
    const auto file = GgufFile::open(path);
    const ModelSpec spec = describe(*file);
    ModelWeights weights(file, spec);
    weights.repack(backend);
    weights.keep(backend);
    Decoder decoder(spec, weights, backend);
    KvCache cache(CacheSpec::parse(cache_spec), spec.cache_shape(), {}, backend.memory());
    std::vector<Token> tokens;
    for (int i = 0; i < n_tokens; ++i) tokens.push_back((i * 37 + 11) % spec.vocab_size);
    std::vector<float> out;
    std::vector<float> last(static_cast<size_t>(spec.vocab_size));
    for (int done = 0; done < n_tokens;) {
      const int n = std::max(1, std::min(40, n_tokens - n_alone - done));
      const auto chunk =
          std::span(tokens).subspan(static_cast<size_t>(done), static_cast<size_t>(n));
      const Batch::Slice slice{
          .cache = &cache, .tokens = chunk, .logits = Mat(last.data(), 1, spec.vocab_size)};
      decoder.forward({.slices = {&slice, 1}, .exact = exact});
      out.insert(out.end(), last.begin(), last.end());
      done += n;
    }
    *read_path = cache.read_path(backend, Precision::fast);
    if (stats != nullptr) *stats = cache.stats();
    return out;
  }

  // Mean divergence of the distributions of rows from those expected.
  static double divergence(const std::vector<float>& expected, const std::vector<float>& found,
                           size_t width) {
    double sum = 0;
    for (size_t row = 0; row < expected.size(); row += width) {
      const auto log_sum = [&](const std::vector<float>& values) {
        double total = 0;
        for (size_t i = row; i < row + width; ++i) total += std::exp(double{values[i]});
        return std::log(total);
      };
      const double p_sum = log_sum(expected);
      const double q_sum = log_sum(found);
      for (size_t i = row; i < row + width; ++i) {
        const double p = double{expected[i]} - p_sum;
        sum += std::exp(p) * (p - (double{found[i]} - q_sum));
      }
    }
    return sum * static_cast<double>(width) / static_cast<double>(expected.size());
  }

  // Returns how many passes were replayed.
  int64_t check(const std::filesystem::path& path, std::string_view cache, int n_tokens, bool exact,
                double bound, int n_alone = 1) {
    CudaBackend gpu(make_cpu_backend(2));
    const auto cpu = make_cpu_backend(2);
    const std::vector<float> expected =
        logits(*cpu, path, cache, n_tokens, true, n_alone, &read_path_);
    const std::vector<float> found =
        logits(gpu, path, cache, n_tokens, exact, n_alone, &read_path_);
    const auto width = static_cast<size_t>(describe(*GgufFile::open(path)).vocab_size);
    EXPECT_LT(std::abs(divergence(expected, found, width)), bound) << path.stem() << ", " << cache;
    return gpu.replays();
  }

  ReadPath read_path_{};  // of the GPU
};

std::vector<std::filesystem::path> tiny_models() {
  std::vector<std::filesystem::path> out;
  for (const auto& entry : std::filesystem::directory_iterator(tiny_folder())) {
    if (entry.path().extension() != ".gguf") continue;
#ifndef KVE_CUDA_COMPILED
    const std::string name = entry.path().stem().string();
    if (name.starts_with("llama") && name != "llama-bias") continue;
    if (name == "gemma3-scaled") continue;
#endif
    out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

TEST_P(CudaModelTest, EveryArchitectureGivesTheLogitsOfTheCpu) {
  for (const auto& path : tiny_models()) check(path, "f16", 12, true, 1e-4);
}

TEST_P(CudaModelTest, PassesOfInt8AreAsFarOffAsTheirRounding) {
  check(tiny_models().front(), "f16", 12, false, 1e-2);
}

// Pages that are read as they lie, those that the CPU reads, rows that are dropped, and pages that
// are chosen for every query; with heads that the kernels take, which those above have not.
TEST_P(CudaModelTest, EveryKindOfCacheGivesTheLogitsOfTheCpu) {
  const test::TemporaryFolder folder;
  const test::TinyModel tiny{.n_layers = 1, .type = WeightType::q8_0};
  const std::filesystem::path path = folder / "tiny.gguf";
  test::TinyWriter(tiny).build().write(path);
  for (const char* cache : {"f32", "q8_0", "int4:group=32,tail=0", "hadamard+int4:group=32,tail=0",
                            "tova:keep=0.5+f16", "quest:keep=0.5,dense=0+f16"}) {
    check(path, cache, 24, true, 1e-4);
  }
  // Query heads that see different rows from the second token on.
  check(path, "h2o_bench:keep=0.5+f16", 24, true, 1e-4, 5);
  // More than a page and a tail.
  check(path, "k=int4:per=channel,group=32,tail=16+v=int2:group=32,tail=16", 84, true, 1e-4);
}

// Keys turned back and in a fitted basis of several sizes, values under Hadamard rotations.
TEST_P(CudaModelTest, RecommendedCachesStayOnTheDevice) {
  const test::TemporaryFolder folder;
  const test::TinyModel tiny{.n_layers = 1, .type = WeightType::q8_0};
  const std::filesystem::path path = folder / "tiny.gguf";
  test::TinyWriter(tiny).build().write(path);
  const std::string codes =
      ":per=channel,group=64,fit=search,scale=log8,tail=4,sinks=4+v=hadamard+v=lm";
  for (const std::string bits : {"4", "2"}) {
    check(path,
          "k=klt:fit=64,anchor=64+k=int" + bits + codes + bits +
              ":group=head,fit=energy,scale=log8,tail=4",
          96, true, 1e-3, 2);
    EXPECT_EQ(read_path_, ReadPath::fused);
  }
  check(path, "hadamard+q8_0:tail=8,sinks=4", 48, true, 1e-4);
  EXPECT_EQ(read_path_, ReadPath::fused);
}

// Nothing that a step's kernels are given changes between steps but what lies in device memory.
TEST_P(CudaModelTest, StepsAreReplayed) {
  const test::TemporaryFolder folder;
  const test::TinyModel tiny{.n_layers = 2, .type = WeightType::q8_0};
  const std::filesystem::path path = folder / "tiny.gguf";
  test::TinyWriter(tiny).build().write(path);
  EXPECT_GE(check(path, "f16", 20, true, 1e-4, 8), 5);
  EXPECT_GE(
      check(path, "k=int4:per=channel,group=32,tail=32+v=int4:group=32,tail=32", 20, true, 1e-4, 8),
      5);
}

// Where a limit of the device's memory keeps pages in the host's, as many as have no room: with
// room for none, and for those of one size.
TEST_P(CudaModelTest, LimitsOfMemoryChangeNoLogits) {
  const test::TemporaryFolder folder;
  const test::TinyModel tiny{.n_layers = 2, .type = WeightType::q8_0};
  const std::filesystem::path path = folder / "tiny.gguf";
  test::TinyWriter(tiny).build().write(path);
  constexpr std::string_view kCache = "k=int4:per=channel,group=32,tail=8+v=int2:group=32,tail=8";
  constexpr int kTokens = 75;
  constexpr int kAlone = 4;
  CudaBackend whole(make_cpu_backend(2));
  CacheStats stats;
  const std::vector<float> expected =
      logits(whole, path, kCache, kTokens, true, kAlone, &read_path_, &stats);
  const int64_t pages = stats.codes + stats.scales;
  EXPECT_EQ(stats.on_device, pages);
  EXPECT_EQ(stats.spilled, 0);
  // Slabs stay for later pages. A build that finds accesses past the ends of pages has none: there
  // limits leave room for some pages, and addresses are not the same in every pass.
  const bool slabs = whole.twins().pages_on_device() > 0;
  const size_t blocks = slabs ? whole.twins().pages_on_device() : static_cast<size_t>(pages);
  for (const size_t limit : {blocks / 2, blocks / 4 * 3}) {
    CudaBackend gpu(make_cpu_backend(2), limit);
    EXPECT_EQ(logits(gpu, path, kCache, kTokens, true, kAlone, &read_path_, &stats), expected)
        << limit;
    EXPECT_EQ(stats.on_device + stats.spilled, pages);
    EXPECT_GT(stats.spilled, 0);
    EXPECT_LE(static_cast<size_t>(stats.on_device) + 2 * Staging::buffer_bytes(limit), limit);
    if (!slabs) continue;
    EXPECT_GE(gpu.staging().in_time(), 2 * (kAlone - 2));
    EXPECT_GT(gpu.replays(), 0);
  }
}

#ifndef KVE_CUDA_COMPILED
TEST_P(CudaModelTest, SaysWhenThereIsNoMemoryForPages) {
  CudaBackend gpu(make_cpu_backend(1), 1);
  emulation::most_locked = emulation::locked_bytes;
  ReadPath read_path{};
  EXPECT_THROW(logits(gpu, tiny_models().front(), "int8:group=8,tail=0", 12, true, 1, &read_path),
               CapacityError);
  emulation::most_locked = SIZE_MAX;
}
#endif

// As they lie (bases that are fitted are not there yet).
TEST_P(CudaModelTest, PresetsAreRead) {
  CudaBackend gpu(make_cpu_backend(1));
  const std::vector<LayerShape> layers{{.n_kv_heads = 2, .key_dim = 128, .value_dim = 128}};
  std::string others;
  for (const CachePreset& preset : cache_presets()) {
    if (preset.spec.find("FILE") != std::string_view::npos) continue;
    const KvCache cache(CacheSpec::parse(preset.name), layers, {}, gpu.memory());
    if (cache.read_path(gpu, Precision::fast) != ReadPath::fused) {
      others += std::string(preset.name) + ' ';
    }
  }
  EXPECT_EQ(others, "");
}

// In one order: they take long, and the kernels are tested in both.
INSTANTIATE_TEST_SUITE_P(Orders, CudaModelTest, ::testing::Values(false));

}  // namespace
}  // namespace kve::cuda
