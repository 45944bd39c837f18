// What concerns the backend as a whole: sealing, steady state, the processor's features.
#include <gtest/gtest.h>

#include "base/allocation_watch.h"
#include "base/error.h"
#include "base/half.h"
#include "kernels/kernel_testing.h"

namespace kve {
namespace {

using test::available_isas;
using test::Random;

class CpuBackendTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_cpu_backend(2, GetParam());
};

size_t page_bytes(const CacheCodec& coder, int width) {
  return coder.code_bytes(kPageTokens, width, coder.default_group) +
         coder.scale_bytes(kPageTokens, width, coder.default_group);
}

TEST_P(CpuBackendTest, SealsAsTheCodecDoes) {
  constexpr int kWidth = 64;
  for (const CacheCodec& coder : cache_codecs()) {
    const size_t bytes = page_bytes(coder, kWidth);
    std::vector<float> source = Random(1).normals(kPageTokens * kWidth);
    std::vector<uint16_t> halves;
    for (float& value : source) {
      halves.push_back(float_to_half(value));
      value = half_to_float(halves.back());
    }
    std::vector<std::byte> expected(bytes);
    std::vector<std::byte> from_f32(bytes);
    std::vector<std::byte> from_f16(bytes);
    const CodecSpec spec = {coder.id, coder.default_group};
    ASSERT_TRUE(coder.encode(source.data(), kWidth, expected.data(), 0, kPageTokens, kWidth,
                             coder.default_group));
    // A page may be sealed in parts.
    const SealJob jobs[] = {
        {spec, source.data(), nullptr, kWidth, 10, kWidth, from_f32.data(), 0},
        {spec, source.data() + 10 * kWidth, nullptr, kWidth, 54, kWidth, from_f32.data(), 10},
        {spec, nullptr, halves.data(), kWidth, 64, kWidth, from_f16.data(), 0}};
    EXPECT_EQ(backend_->seal(jobs), -1);
    EXPECT_EQ(from_f32, expected) << coder.name;
    EXPECT_EQ(from_f16, expected) << coder.name;
  }
}

TEST_P(CpuBackendTest, SealNamesTheFirstJobThatIsNotFinite) {
  constexpr int kWidth = 32;
  const CacheCodec& coder = codec(CodecId::int8);
  const size_t bytes = page_bytes(coder, kWidth);
  std::vector<std::vector<float>> sources(20, Random(2).normals(4 * kWidth));
  std::vector<std::vector<std::byte>> pages(20, std::vector<std::byte>(bytes));
  std::vector<SealJob> jobs;
  for (size_t i = 0; i < sources.size(); ++i) {
    jobs.push_back({{coder.id, coder.default_group},
                    sources[i].data(),
                    nullptr,
                    kWidth,
                    4,
                    kWidth,
                    pages[i].data(),
                    0});
  }
  EXPECT_EQ(backend_->seal(jobs), -1);
  EXPECT_EQ(backend_->seal({}), -1);
  sources[17][5] = INFINITY;
  EXPECT_EQ(backend_->seal(jobs), 17);
  sources[6][0] = NAN;
  sources[11][0] = NAN;
  EXPECT_EQ(backend_->seal(jobs), 6);
}

// One decode step's operations.
struct Step {
  test::TestWeight coded = test::make_weight(WeightType::q4_k, 192, 256, 1);
  test::TestWeight plain = test::make_weight(WeightType::f16, 64, 256, 2);
  std::vector<float> x = Random(3).normals(4 * 256);
  std::vector<float> y = std::vector<float>(4 * 256);
  std::vector<uint16_t> cache = std::vector<uint16_t>(600 * 64, 0x3800);
  std::vector<std::byte> page = std::vector<std::byte>(64 * 64 * 4);

  void run(Backend& backend) {
    const Token token[] = {3};
    const Mat row(x.data(), 1, 256);
    backend.embed(coded.weight, token, 1.0f, row);
    backend.rms_norm(row, x.data(), 1e-5f, row);
    for (const Precision precision : {Precision::exact, Precision::fine, Precision::fast}) {
      const Product products[] = {{&coded.weight, Mat(y.data(), 1, 192), nullptr},
                                  {&plain.weight, Mat(y.data() + 192, 1, 64), nullptr}};
      backend.matmul(row, products, precision);
    }
    const SideView side = {{CodecId::f16, 0}, 64, {}, cache.data(), 600};
    const HeadView heads[] = {{side, side, 600, 0}};
    const AttendTask task = {row, heads, 599, Mat(y.data(), 1, 256)};
    backend.attend({.n_heads = 4, .n_kv_heads = 1, .key_dim = 64, .value_dim = 64}, {&task, 1});
    backend.gated(Activation::silu, row, Mat(y.data(), 1, 256));
    const SealJob job = {{CodecId::q8_0, 32}, nullptr, cache.data(), 64, 64, 64, page.data(), 0};
    backend.seal({&job, 1});
  }
};

TEST_P(CpuBackendTest, SteadyStateAllocatesNothing) {
  for (const int threads : {1, 2}) {
    const auto backend = make_cpu_backend(threads, GetParam());
    Step step;
    step.run(*backend);
    const test::AllocationWatch watch;
    for (int i = 0; i < 5; ++i) step.run(*backend);
    EXPECT_EQ(watch.seen().count, 0u) << threads << " threads";
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuBackendTest, ::testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

TEST(MakeCpuBackend, RefusesUnknownNames) {
  if (std::getenv("KVENGINE_ISA") != nullptr) GTEST_SKIP() << "KVENGINE_ISA overrides the name";
  EXPECT_THROW(make_cpu_backend(1, "mmx"), ConfigError);
  EXPECT_THROW(make_cpu_backend(0), ConfigError);
  for (const std::string& isa : available_isas()) {
    EXPECT_EQ(make_cpu_backend(1, isa)->name(), "cpu-" + isa);
  }
  EXPECT_EQ(make_cpu_backend(1)->name(), "cpu-" + available_isas().back());
}

TEST(CpuFeatures, AreNested) {
  if (cpu_features().avx512) {
    EXPECT_TRUE(cpu_features().avx2);
  }
  if (cpu_features().dotprod) {
    EXPECT_TRUE(cpu_features().neon);
  }
}

}  // namespace
}  // namespace kve
