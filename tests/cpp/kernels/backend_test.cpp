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

// A job that codes rows of 64-value heads without a basis.
SealJob job_of(const PageFormat& format, int n_rows, std::byte* page, int first_row) {
  SealJob job;
  job.format = format;
  job.stride = job.width = format.width;
  job.n_rows = n_rows;
  job.page = page;
  job.first_row = first_row;
  return job;
}

TEST_P(CpuBackendTest, SealsAsTheCodecDoes) {
  constexpr int kWidth = 64;
  for (const CodecSpec& codec : test::test_codecs()) {
    for (const bool is_values : {false, true}) {
      const PageFormat format = page_format(codec, kWidth, is_values);
      const size_t bytes = page_bytes(format);
      std::vector<float> source = Random(1).normals(kPageTokens * kWidth);
      std::vector<uint16_t> halves;
      for (float& value : source) {
        halves.push_back(float_to_half(value));
        value = half_to_float(halves.back());
      }
      std::vector<std::byte> expected(bytes);
      std::vector<std::byte> from_f32(bytes);
      std::vector<std::byte> from_f16(bytes);
      std::vector<std::byte> scratch(encode_scratch(format));
      ASSERT_TRUE(encode_rows(format, source.data(), kWidth, expected.data(), 0, kPageTokens,
                              scratch.data()));
      // A page may be sealed in parts, of whole units.
      const int unit = rows_per_unit(format);
      const int part = std::min(kPageTokens, (10 + unit - 1) / unit * unit);
      std::vector<SealJob> jobs = {job_of(format, part, from_f32.data(), 0),
                                   job_of(format, kPageTokens - part, from_f32.data(), part),
                                   job_of(format, kPageTokens, from_f16.data(), 0)};
      jobs[0].f32 = source.data();
      jobs[1].f32 = source.data() + part * kWidth;
      jobs[2].f16 = halves.data();
      if (part == kPageTokens) jobs.erase(jobs.begin() + 1);
      // One by one: rows of a page share bytes.
      for (const SealJob& job : jobs) EXPECT_EQ(backend_->seal({&job, 1}), -1);
      EXPECT_EQ(from_f32, expected) << format_name(format);
      EXPECT_EQ(from_f16, expected) << format_name(format);
    }
  }
}

TEST_P(CpuBackendTest, SealNamesTheFirstJobThatIsNotFinite) {
  constexpr int kWidth = 32;
  CodecSpec codec = {CodecId::coded, {Coding::asym, 8}};
  codec.group = 32;
  const PageFormat format = page_format(codec, kWidth, false);
  std::vector<std::vector<float>> sources(20, Random(2).normals(4 * kWidth));
  std::vector<std::vector<std::byte>> pages(20, std::vector<std::byte>(page_bytes(format)));
  std::vector<SealJob> jobs;
  for (size_t i = 0; i < sources.size(); ++i) {
    jobs.push_back(job_of(format, 4, pages[i].data(), 0));
    jobs.back().f32 = sources[i].data();
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
  PageFormat format =
      page_format({.id = CodecId::coded, .coding = {Coding::q8_0, 8}, .group = 32}, 64, false);
  std::vector<std::byte> page = std::vector<std::byte>(page_bytes(format));
  std::vector<uint16_t> lift = std::vector<uint16_t>(64 * 64, 0x2c00);
  double frequencies[2] = {1, 0.1};
  BasisView basis = {.dim = 64,
                     .width = 64,
                     .block = 64,
                     .block_width = 64,
                     .lift = lift.data(),
                     .anchor = 64,
                     .frequencies = frequencies,
                     .n_pairs = 2};

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
    // 600 rows: a sealed page in a basis, turned back, then the tail.
    SideView side;
    side.width = side.n_channels = side.row_stride = 64;
    side.format = format;
    side.tail = cache.data();
    side.tail_rows = 600 - kPageTokens;
    const PageView view = {page.data(), static_cast<int32_t>(page.size()), kPageTokens, 0};
    side.pages = {&view, 1};
    side.bases = &basis;
    SideView values = side;
    BasisView fixed = basis;  // values are never turned
    fixed.anchor = 0;
    values.bases = &fixed;
    const HeadView heads[] = {{side, values, 600, 0, 0}};
    SealJob job = job_of(format, kPageTokens, page.data(), 0);
    job.f16 = cache.data();
    job.basis = &basis;
    backend.seal({&job, 1});
    const AttendTask task = {row, heads, 599, Mat(y.data(), 1, 256)};
    backend.attend({.n_heads = 4, .n_kv_heads = 1, .key_dim = 64, .value_dim = 64}, {&task, 1});
    backend.gated(Activation::silu, row, Mat(y.data(), 1, 256));
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
  // The last instruction set, but not bf16 where it is slow.
  const bool skips_bf16 = cpu_features().slow_bf16 && !cpu_features().amx;
  const std::string best = skips_bf16 ? "avx512" : available_isas().back();
  EXPECT_EQ(make_cpu_backend(1)->name(), "cpu-" + best);
}

TEST(CpuFeatures, AreNested) {
  if (cpu_features().avx512) {
    EXPECT_TRUE(cpu_features().avx2);
  }
  if (cpu_features().amx) {
    EXPECT_TRUE(cpu_features().avx512);
  }
  if (cpu_features().dotprod) {
    EXPECT_TRUE(cpu_features().neon);
  }
}

}  // namespace
}  // namespace kve
