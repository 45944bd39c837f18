// The backend beside the CPU's, operation by operation, with operands in the host's memory and in
// the backend's.
#include "kernels/cuda/cuda_backend.h"

#include <cmath>

#include "base/half.h"
#include "kernels/attend_testing.h"
#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

using test::Random;

class CudaBackendTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped()) backend_ = std::make_unique<CudaBackend>(make_cpu_backend(2));
  }

  // Copies of values in the backend's memory, while the test runs.
  Mat shared(const std::vector<float>& values, int64_t rows) {
    Scratch& memory = memory_.emplace_back(backend_->memory());
    auto* data = memory.get<float>(values.size());
    std::copy(values.begin(), values.end(), data);
    const Mat mat(data, rows, static_cast<int64_t>(values.size()) / rows);
    backend_->send(mat);
    return mat;
  }
  std::vector<float> values_of(const Mat& mat) {
    backend_->fetch(mat);
    std::vector<float> out;
    for (int64_t r = 0; r < mat.rows; ++r) {
      out.insert(out.end(), mat.row(r), mat.row(r) + mat.cols);
    }
    return out;
  }

  // Runs run(backend, x, y), which changes x, on the CPU and on both kinds of operands.
  template <class Run>
  void compare(const char* name, const std::vector<float>& x, const std::vector<float>& y,
               int64_t rows, double bound, const Run& run) {
    std::vector<float> cpu_x = x;
    std::vector<float> cpu_y = y;
    const auto view = [&](std::vector<float>& values) {
      return Mat(values.data(), rows, static_cast<int64_t>(values.size()) / rows);
    };
    run(*cpu_, view(cpu_x), view(cpu_y));
    const std::vector<double> expected(cpu_x.begin(), cpu_x.end());
    std::vector<float> host_x = x;
    std::vector<float> host_y = y;
    run(*backend_, view(host_x), view(host_y));
    EXPECT_LT(test::relative_error(host_x, expected), bound) << name << ", in the host's memory";
    const Mat there = shared(x, rows);
    run(*backend_, there, shared(y, rows));
    EXPECT_LT(test::relative_error(values_of(there), expected), bound)
        << name << ", in the backend's";
    EXPECT_FALSE(backend_->was_on_host()) << name;
  }

  std::unique_ptr<CudaBackend> backend_;
  std::unique_ptr<Backend> cpu_ = make_cpu_backend(1, "scalar");  // the definition of correct

 private:
  std::vector<Scratch> memory_;  // before the backend goes
  void TearDown() override { memory_.clear(); }
};

TEST_P(CudaBackendTest, RowOperationsAreThoseOfTheCpu) {
  constexpr int64_t kRows = 3;
  constexpr int64_t kCols = 192;
  Random random(1);
  const std::vector<float> x = random.normals(kRows * kCols, 3);
  const std::vector<float> y = random.normals(kRows * kCols);
  const std::vector<float> weight = random.normals(kCols);
  const std::vector<float> bias = random.normals(kCols);
  const auto check = [&](const char* name, const auto& run) {
    compare(name, x, y, kRows, 5e-6, run);
  };
  check("rms_norm",
        [&](Backend& backend, Mat a, Mat) { backend.rms_norm(a, weight.data(), 1e-5f, a); });
  check("layer_norm", [&](Backend& backend, Mat a, Mat b) {
    backend.layer_norm(b, weight.data(), bias.data(), 1e-5f, a);
  });
  check("layer_norm without bias", [&](Backend& backend, Mat a, Mat) {
    backend.layer_norm(a, weight.data(), nullptr, 1e-5f, a);
  });
  check("rope", [&](Backend& backend, Mat a, Mat b) {
    backend.rope(a, 64, RopeLayout::half_split, b.columns(0, 32), b.columns(32, 32));
  });
  check("gated", [&](Backend& backend, Mat a, Mat b) { backend.gated(Activation::silu, a, b); });
  check("not gated",
        [&](Backend& backend, Mat a, Mat) { backend.gated(Activation::gelu_tanh, a, {}); });
  check("add", [&](Backend& backend, Mat a, Mat b) { backend.add(a, b); });
  check("softcap", [&](Backend& backend, Mat a, Mat) { backend.softcap(2, a); });
  check("clamp", [&](Backend& backend, Mat a, Mat) { backend.clamp(2.5f, a); });
}

TEST_P(CudaBackendTest, KeepsConstants) {
  Random random(2);
  const std::vector<float> weight = random.normals(64);
  backend_->keep(std::as_bytes(std::span(weight)));
  backend_->keep(std::as_bytes(std::span(weight)));
  compare("rms_norm", random.normals(128), {}, 2, 5e-6,
          [&](Backend& backend, Mat a, Mat) { backend.rms_norm(a, weight.data(), 1e-5f, a); });
}

TEST_P(CudaBackendTest, EmbedsAsTheCpu) {
  const test::TestWeight table = test::make_weight(WeightType::q8_0, 20, 64, 3);
  const std::vector<Token> tokens = {3, 19, 0, 3};
  const std::vector<float> empty(tokens.size() * 64, NAN);
  std::vector<float> expected = empty;
  cpu_->embed(table.weight, tokens, 2, Mat(expected.data(), 4, 64));
  const Mat there = shared(empty, 4);
  backend_->embed(table.weight, tokens, 2, there);
  EXPECT_TRUE(test::same_bits(values_of(there), expected));
  EXPECT_TRUE(backend_->was_on_host());
}

// Every type of the list, as it lies in the file and as the backend keeps it.
TEST_P(CudaBackendTest, MultipliesWithEveryTypeOfWeight) {
  for (const WeightFormat& type : weight_formats()) {
    if (type.block_values == 0 || type.decode == nullptr) continue;
    constexpr int64_t kRows = 3;
    constexpr int64_t kCols = 256;
    constexpr int64_t kInputs = 2;
    const test::TestWeight made = test::make_weight(type.type, kRows, kCols, 4);
    Random random(5);
    const std::vector<float> x = random.normals(kInputs * kCols);
    const std::vector<float> bias = random.normals(kRows);
    std::vector<double> expected;
    for (int64_t i = 0; i < kInputs; ++i) {
      for (int64_t r = 0; r < kRows; ++r) {
        double sum = double{bias[static_cast<size_t>(r)]};
        for (int64_t c = 0; c < kCols; ++c) {
          sum += double{x[static_cast<size_t>(i * kCols + c)]} *
                 double{made.values[static_cast<size_t>(r * kCols + c)]};
        }
        expected.push_back(sum);
      }
    }
    Scratch memory(backend_->memory());
    Weight repacked = made.weight;
    auto* bytes = memory.get<std::byte>(backend_->repacked_bytes(made.weight));
    backend_->repack(made.weight, bytes);
    repacked.repacked = bytes;
    const bool known = packed_type(type.type) == type.type;
    for (const Weight& weight : {made.weight, repacked}) {
      for (const Precision precision : {Precision::exact, Precision::fine, Precision::fast}) {
        std::vector<float> y(expected.size(), NAN);
        const Product product{&weight, Mat(y.data(), kInputs, kRows), bias.data()};
        backend_->matmul(ConstMat(x.data(), kInputs, kCols), {&product, 1}, precision);
        // Other types are rounded to binary16, inputs to int8.
        double bound = known ? 2e-6 : 1e-3;
        if (precision == Precision::fine) bound = std::max(bound, 1e-4);
        if (precision == Precision::fast) bound = 2e-2;
        EXPECT_LT(test::relative_error(y, expected), bound)
            << type.name << ", precision " << static_cast<int>(precision);
      }
    }
  }
}

// Rows and columns of a matrix of floats that was kept, as merged keys use them.
TEST_P(CudaBackendTest, MultipliesWithPartsOfKeptWeights) {
  const test::TestWeight made = test::make_weight(WeightType::f16, 8, 96, 6);
  backend_->keep(made.bytes);
  Random random(7);
  const std::vector<float> x = random.normals(2 * 32);
  Weight part = made.weight;
  part.rows = 3;
  part.cols = 32;
  part.data += 4 * part.row_bytes + 32 * sizeof(uint16_t);
  std::vector<double> expected;
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t r = 4; r < 7; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < 32; ++c) {
        sum += double{x[static_cast<size_t>(i * 32 + c)]} *
               double{made.values[static_cast<size_t>(r * 96 + 32 + c)]};
      }
      expected.push_back(sum);
    }
  }
  // Into columns of a wider matrix.
  std::vector<float> y(2 * 5, 9);
  const Product product{&part, Mat(y.data(), 2, 5).columns(1, 3), nullptr};
  backend_->matmul(ConstMat(x.data(), 2, 32), {&product, 1}, Precision::fine);
  EXPECT_LT(test::relative_error({y[1], y[2], y[3], y[6], y[7], y[8]}, expected), 2e-6);
  for (const size_t outside : {0, 4, 5, 9}) EXPECT_EQ(y[outside], 9) << outside;
}

TEST_P(CudaBackendTest, AttendsAsItsDefinitionSays) {
  CodecSpec codec = {CodecId::coded, {Coding::asym, 4}};
  codec.group = 32;
  for (const int queries : {1, 3, 20}) {
    test::Case plain{.n_queries = queries, .k_codec = codec, .v_codec = codec, .sinks = 4};
    test::Case gaps = plain;
    gaps.gaps = true;
    gaps.dead = true;
    test::Case window = plain;
    window.window = 50;
    window.softcap = 3;
    window.first_pos = 131;
    window.sinks = 0;
    test::Case floats{.key_dim = 80, .value_dim = 80, .n_queries = queries};
    for (const test::Case& c : {plain, gaps, window, floats}) {
      const test::Problem problem(c);
      EXPECT_LT(test::rms_error(problem.run(*backend_), problem.reference()), 2e-3) << queries;
      EXPECT_FALSE(backend_->was_on_host());
    }
  }
}

TEST_P(CudaBackendTest, AttendsWithLinearBiasesAndToRowsOfF32) {
  for (const int queries : {1, 20}) {
    test::Case alibi{.n_queries = queries};
    alibi.alibi = true;
    test::Case gaps = alibi;
    gaps.gaps = true;
    gaps.dead = true;
    const test::Case wide{
        .n_queries = queries, .k_codec = {CodecId::f32}, .v_codec = {CodecId::f32}};
    for (const test::Case& c : {alibi, gaps, wide}) {
      const test::Problem problem(c);
      std::vector<float> log_sums;
      EXPECT_LT(test::rms_error(problem.run(*backend_, &log_sums), problem.reference()), 2e-3);
      EXPECT_FALSE(backend_->was_on_host());
    }
  }
}

TEST_P(CudaBackendTest, WeighsRowsAsItsDefinitionSays) {
  CodecSpec codec = {CodecId::coded, {Coding::asym, 8}};
  codec.group = 32;
  for (const int queries : {1, 3, 20}) {
    for (const bool gaps : {false, true}) {
      test::Case c{.n_queries = queries, .k_codec = codec, .sinks = 4};
      c.gaps = c.dead = c.alibi = gaps;
      const test::Problem problem(c);
      std::vector<float> log_sums;
      problem.run(*backend_, &log_sums);
      for (const MassOf what : {MassOf::sum, MassOf::most}) {
        std::vector<float> mass(static_cast<size_t>(c.n_kv_heads * c.n_rows));
        std::vector<float*> heads;
        for (int h = 0; h < c.n_kv_heads; ++h) heads.push_back(mass.data() + h * c.n_rows);
        const MassTask task{.q = problem.queries(),
                            .heads = problem.heads,
                            .first_pos = problem.first_query(),
                            .log_sums = log_sums.data(),
                            .mass = heads};
        backend_->attention_mass(problem.params, what, {&task, 1});
        EXPECT_FALSE(backend_->was_on_host());
        EXPECT_LT(test::relative_error(mass, problem.mass(what, 0)), 1e-2) << queries;
      }
    }
  }
}

// Not known to the kernels: the CPU, and said so.
TEST_P(CudaBackendTest, LeavesOtherPagesToTheCpu) {
  CodecSpec outliers{CodecId::coded, {Coding::asym, 4}};
  outliers.per = Per::channel;
  outliers.group = kPageTokens;
  outliers.outliers = 2;
  const test::Case c{.k_codec = outliers};
  const test::Problem problem(c);
  std::vector<float> log_sums;
  EXPECT_LT(test::rms_error(problem.run(*backend_, &log_sums), problem.reference()), 1e-5);
  EXPECT_TRUE(backend_->was_on_host());
  EXPECT_EQ(backend_->read_path(problem.heads[0].k, Precision::fast), ReadPath::host);
  const test::Problem halves{test::Case{}};
  EXPECT_EQ(backend_->read_path(halves.heads[0].k, Precision::fast), ReadPath::fused);
}

// All codecs, with the same bits as the CPU; those that kernels do not know by the CPU.
TEST_P(CudaBackendTest, SealsAsTheCpu) {
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
      const int unit = rows_per_unit(format);
      const int part = std::min(kPageTokens, (10 + unit - 1) / unit * unit);
      Scratch memory(backend_->memory());
      auto* page = memory.get<std::byte>(bytes);
      std::vector<std::byte> expected(bytes);
      SealJob job{.format = format, .stride = kWidth, .width = kWidth};
      for (Backend* backend : {cpu_.get(), static_cast<Backend*>(backend_.get())}) {
        job.page = backend == cpu_.get() ? expected.data() : page;
        backend->memory().zero(job.page, bytes);
        job.f32 = source.data();
        job.f16 = nullptr;
        job.first_row = 0;
        job.n_rows = part;
        EXPECT_EQ(backend->seal({&job, 1}), -1);
        job.f32 = nullptr;
        job.f16 = halves.data() + part * kWidth;
        job.first_row = part;
        job.n_rows = kPageTokens - part;
        if (job.n_rows == 0) continue;
        EXPECT_EQ(backend->seal({&job, 1}), -1);
      }
      EXPECT_EQ(backend_->was_on_host(), !encodes(format));
      backend_->memory().fetch(page, bytes);
      EXPECT_EQ(std::vector<std::byte>(page, page + bytes), expected) << format_name(format);
    }
  }
}

TEST_P(CudaBackendTest, SealNamesTheFirstJobThatIsNotFinite) {
  constexpr int kWidth = 32;
  CodecSpec coded = {CodecId::coded, {Coding::asym, 4}};
  coded.group = 32;
  CodecSpec other = coded;
  other.outliers = 2;  // for the CPU
  std::vector<std::vector<float>> sources(6, Random(2).normals(kPageTokens * kWidth));
  Scratch memory(backend_->memory());
  std::vector<SealJob> jobs;
  const size_t most = page_bytes(page_format({CodecId::f16}, kWidth, false));
  auto* pages = memory.get<std::byte>(sources.size() * most);
  for (size_t i = 0; i < sources.size(); ++i) {
    const CodecSpec& codec = i % 3 == 0 ? other : i % 3 == 1 ? coded : CodecSpec{CodecId::f16};
    SealJob& job = jobs.emplace_back();
    job.format = page_format(codec, kWidth, false);
    job.f32 = sources[i].data();
    job.stride = job.width = kWidth;
    job.n_rows = kPageTokens;
    job.page = pages + i * most;
  }
  EXPECT_EQ(backend_->seal(jobs), -1);
  EXPECT_EQ(backend_->seal({}), -1);
  for (size_t i = sources.size(); i-- > 0;) {
    sources[i][70] = i % 2 == 0 ? NAN : INFINITY;
    EXPECT_EQ(backend_->seal(jobs), static_cast<int64_t>(i));
  }
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaBackendTest, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
