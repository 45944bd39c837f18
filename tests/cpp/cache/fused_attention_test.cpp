// Attention that multiplies codes as they lie in pages, against attention over rebuilt rows.
#include <cmath>

#include "cache/cache_testing.h"
#include "kernels/kernel_testing.h"

namespace kve {
namespace {

struct Shape {
  int n_heads = 3;
  int n_kv_heads = 1;
  int key_dim = 64;
  int value_dim = 64;
};

struct FusedCase {
  std::string spec;
  Shape shape;
  int n_tokens = 700;
  int n_queries = 1;
  float softcap = 0;
  int window = 0;
  bool alibi = false;
  bool interleaved = true;

  std::string name() const {
    return spec + ", heads " + std::to_string(shape.n_heads) + "/" +
           std::to_string(shape.n_kv_heads) + ", dims " + std::to_string(shape.key_dim) + "/" +
           std::to_string(shape.value_dim) + ", tokens " + std::to_string(n_tokens) + ", queries " +
           std::to_string(n_queries);
  }
};

// A cache of one layer with rows of uneven channels, and queries for its newest tokens.
class FusedRun {
 public:
  FusedRun(const FusedCase& c, Backend& backend, uint64_t seed)
      : case_(c), cache_(CacheSpec::parse(c.spec), {layer(c)}), random_(seed) {
    for (int done = 0; done < c.n_tokens;) {
      const int n = std::min(c.n_tokens - done, 257);
      append(backend, n);
      done += n;
      cache_.commit(backend, n, done < c.n_tokens);
    }
    const int64_t cols = int64_t{c.shape.n_heads} * c.shape.key_dim;
    queries_ = random_.normals(c.n_queries * cols, 0.7f);
    for (int h = 0; h < c.shape.n_heads; ++h) slopes_.push_back(0.002f * static_cast<float>(h + 1));
  }

  std::vector<float> attend(Backend& backend, Precision precision) const {
    return attend(backend, precision, 0, case_.n_queries);
  }
  // [n_queries, n_heads]: the logarithms of the sums, in which only keys have a part.
  std::vector<float> log_sums(Backend& backend, Precision precision) const {
    std::vector<float> out(static_cast<size_t>(case_.n_queries * case_.shape.n_heads));
    attend(backend, precision, 0, case_.n_queries, out.data());
    return out;
  }
  // The queries [first, first + n) of the newest tokens.
  std::vector<float> attend(Backend& backend, Precision precision, int first, int n,
                            float* log_sums = nullptr) const {
    const Shape& s = case_.shape;
    const int64_t q_cols = int64_t{s.n_heads} * s.key_dim;
    const int64_t out_cols = int64_t{s.n_heads} * s.value_dim;
    std::vector<float> out(static_cast<size_t>(n * out_cols));
    const AttendParams params = {
        .n_heads = s.n_heads,
        .n_kv_heads = s.n_kv_heads,
        .key_dim = s.key_dim,
        .value_dim = s.value_dim,
        .scale = 1 / std::sqrt(static_cast<float>(s.key_dim)),
        .softcap = case_.softcap,
        .window = case_.window,
        .alibi = case_.alibi ? slopes_.data() : nullptr,
        .precision = precision,
    };
    const AttendTask task = {ConstMat(queries_.data() + first * q_cols, n, q_cols), cache_.view(0),
                             case_.n_tokens - case_.n_queries + first, Mat(out.data(), n, out_cols),
                             log_sums};
    backend.attend(params, {&task, 1});
    return out;
  }
  const KvCache& cache() const { return cache_; }

 private:
  static LayerShape layer(const FusedCase& c) {
    auto rotation = std::make_shared<Rotation>();
    for (int i = 0; i < c.shape.key_dim / 2 - 2; ++i) {
      rotation->frequencies.push_back(std::pow(10000.0, -2.0 * i / c.shape.key_dim));
    }
    rotation->interleaved = c.interleaved;
    return {c.shape.n_kv_heads, c.shape.key_dim, c.shape.value_dim, c.window, rotation};
  }
  std::vector<float> rows(int n, int dim) {
    const int64_t cols = int64_t{case_.shape.n_kv_heads} * dim;
    std::vector<float> out = random_.normals(n * cols);
    for (size_t i = 0; i < out.size(); ++i) {
      const size_t channel = i % static_cast<size_t>(dim);
      out[i] = out[i] * (channel % 7 == 3 ? 2.0f : 0.6f) + (channel % 11 == 5 ? 1.5f : 0.0f);
    }
    return out;
  }
  void append(Backend& backend, int n) {
    const Shape& s = case_.shape;
    const int64_t k_cols = int64_t{s.n_kv_heads} * s.key_dim;
    const int64_t v_cols = int64_t{s.n_kv_heads} * s.value_dim;
    const std::vector<float> k = rows(n, s.key_dim);
    const std::vector<float> v = rows(n, s.value_dim);
    cache_.append(backend, 0, ConstMat(k.data(), n, k_cols), ConstMat(v.data(), n, v_cols));
    if (!cache_.wants_queries(0)) return;
    const int64_t q_cols = int64_t{s.n_heads} * s.key_dim;
    const std::vector<float> q = random_.normals(n * q_cols);
    cache_.observe_queries(0, ConstMat(q.data(), n, q_cols));
  }

  FusedCase case_;
  KvCache cache_;
  test::Random random_;
  std::vector<float> queries_;
  std::vector<float> slopes_;
};

double rms(const std::vector<float>& a, const std::vector<float>& minus) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = double{a[i]} - (minus.empty() ? 0.0 : double{minus[i]});
    total += d * d;
  }
  return std::sqrt(total / static_cast<double>(a.size()));
}

class FusedAttention : public ::testing::TestWithParam<std::string> {
 protected:
  FusedAttention() : backend_(make_cpu_backend(2, GetParam())) {}

  // The error of fused attention, relative to what it gives.
  double error(const FusedCase& c) {
    const FusedRun run(c, *backend_, 7);
    const std::vector<float> wanted = run.attend(*backend_, Precision::exact);
    const std::vector<float> found = run.attend(*backend_, Precision::fast);
    EXPECT_EQ(run.cache().read_path(*backend_, Precision::fast), ReadPath::fused) << c.name();
    return rms(found, wanted) / rms(wanted, {});
  }
  std::unique_ptr<Backend> backend_;
};

// Relative errors: a weight, or a value of a query of few bits, rounded to 1 / 127 of the largest,
// is off by 0.2 % of that, and errors of many terms average out (strips_test.cpp has what two
// planes of a query leave). Levels of tables are rounded to 1 / 127 of the largest too, but those
// of all rows alike.
constexpr double kOnePlane = 0.004;
constexpr double kTable = 0.008;

// What an error may be at most for a side with this codec.
double tolerance(const std::string& spec) {
  const auto has = [&](const char* part) { return spec.find(part) != std::string::npos; };
  if (has("nf4")) return kTable;
  // Two levels whose scale is the largest of values far apart: the weights of rows hardly differ.
  if (has("int1")) return 0.02;
  return kOnePlane;
}

TEST_P(FusedAttention, EveryCoding) {
  for (const char* codec : {"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "int8", "int7",
                            "int6", "int5", "int4", "int3", "int2", "int1",   "sym8", "sym6",
                            "sym4", "sym3", "sym2", "lm4",  "lm3",  "lm2",    "lm1",  "nf4"}) {
    FusedCase c;
    c.spec = codec;
    EXPECT_LT(error(c), tolerance(c.spec)) << c.name();
  }
}

// Queries have two planes for keys of more than 4 bits. Of the sums of weights, in which values
// have no part, the logarithms (here about 10) are then off by up to 3e-5; with one plane
// by 2.5e-3.
TEST_P(FusedAttention, QueriesOfKeysOfManyBitsHaveTwoPlanes) {
  for (const char* codec :
       {"q8_0", "q5_1", "q5_0", "int8", "int7", "int6", "int5", "sym8", "sym6"}) {
    FusedCase c;
    c.spec = codec;
    const FusedRun run(c, *backend_, 7);
    const std::vector<float> wanted = run.log_sums(*backend_, Precision::exact);
    const std::vector<float> found = run.log_sums(*backend_, Precision::fast);
    ASSERT_EQ(found.size(), wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(found[i], wanted[i], 1e-4) << codec;
  }
}

TEST_P(FusedAttention, EveryGroup) {
  for (const char* codec : {"int4", "sym8", "int2", "lm4"}) {
    for (const char* form : {"group=16", "group=64", "group=head", "group=row",
                             "per=channel,group=16", "per=channel,group=32", "per=channel,group=64",
                             "per=channel,group=64,scale=log8", "group=head,channels=centred",
                             "group=32,channels=scaled", "per=channel,group=64,channels=scaled"}) {
      FusedCase c;
      c.spec = std::string(codec) + ":" + form;
      c.shape.n_kv_heads = 2;
      c.shape.n_heads = 8;
      EXPECT_LT(error(c), tolerance(c.spec)) << c.name();
    }
  }
}

TEST_P(FusedAttention, HeadsOfDifferentCodings) {
  for (const char* spec :
       {"int4+int8:heads=1", "sym8:tail=0+q8_0:heads=0,tail=0", "k=int3+k=lm4:heads=1+v=int5",
        "klt:fit=128+int4:per=channel,group=64+klt:fit=128,heads=1+int2:per=channel,group=64,"
        "heads=1"}) {
    FusedCase c;
    c.spec = spec;
    c.shape.n_kv_heads = 2;
    c.shape.n_heads = 8;
    EXPECT_LT(error(c), std::max(kOnePlane, tolerance(c.spec))) << c.name();
  }
}

TEST_P(FusedAttention, PagesOfDifferentAges) {
  for (const char* spec :
       {"int8+int4:older=100+int2:older=300", "q8_0:tail=3,sinks=5+q4_0:older=64",
        "klt:fit=128+int8:per=channel,group=64+int4:per=channel,group=64,older=150+"
        "int2:per=channel,group=32,older=400",
        "k=klt:fit=128,anchor=0+k=int4:per=channel,group=64,sinks=4+k=int3:per=channel,group=64,"
        "older=99+v=hadamard+v=lm4:group=head+v=lm2:older=333",
        "mpo:segment=256+sym8:group=row+sym4:group=row,older=200",
        "k=int5:per=channel,group=64,channels=scaled+k=int3:older=222,per=channel,group=64+"
        "v=int4:group=16+v=int4:group=64,older=64"}) {
    for (const int n_queries : {1, 7, 150}) {
      FusedCase c;
      c.spec = spec;
      c.shape = {6, 2, 64, 64};
      c.n_tokens = 900;
      c.n_queries = n_queries;
      EXPECT_LT(error(c), kOnePlane) << c.name();
    }
  }
}

// Blocks with fewer coefficients than values.
TEST_P(FusedAttention, TruncatedBonds) {
  for (const char* spec :
       {"mpo:block=16,bonds=12,segment=256+sym8:group=row",
        "mpo:block=8x8,bonds=32x6,segment=256+sym4:group=row",
        "k=mpo:block=16,bonds=7,segment=128+k=int4:group=row+v=q8_0",
        "k=mpo:block=2x4x4,bonds=20x11x3,segment=128+k=int8:per=channel,group=64+v=int5"}) {
    for (const int n_queries : {1, 150}) {
      FusedCase c;
      c.spec = spec;
      c.shape = {4, 2, 64, 64};
      c.n_queries = n_queries;
      EXPECT_LT(error(c), kOnePlane) << c.name();
    }
  }
}

TEST_P(FusedAttention, EveryShape) {
  for (const Shape& shape :
       {Shape{4, 4, 64, 64}, Shape{3, 1, 80, 80}, Shape{4, 1, 96, 96}, Shape{8, 2, 128, 128},
        Shape{6, 1, 256, 256}, Shape{2, 2, 96, 64}, Shape{71, 1, 64, 64}, Shape{1, 1, 16, 32}}) {
    for (const char* spec :
         {"sym8:group=head", "int6:group=16", "hadamard+lm3:group=head", "rotation+sym4:group=head",
          "mpo:segment=256+sym8:group=row", "lowrank:rank=16,segment=256+int8:group=16",
          "k=klt:fit=128+k=int4:per=channel,group=64,fit=search,scale=log8,sinks=4+v=hadamard+"
          "v=lm4:group=head,fit=energy,scale=log8",
          "k=klt:fit=128+k=int8:per=channel,group=64+v=int8:group=head",
          "k=klt:fit=128,anchor=0+k=int3:per=channel,group=32+v=f16", "k=f16+v=int5:group=16",
          "k=int2:per=channel,group=32,tail=128,seal=window+v=int2:group=16,tail=128,seal=row"}) {
      FusedCase c;
      c.spec = spec;
      c.shape = shape;
      c.n_queries = 2;
      EXPECT_LT(error(c), tolerance(c.spec)) << c.name();
    }
  }
}

TEST_P(FusedAttention, EveryMask) {
  for (const char* spec : {"int5:sinks=5,tail=3", "q8_0", "int8:per=channel,group=32,tail=100",
                           "k=klt:fit=128+k=int4:per=channel,group=64,sinks=4+v=lm4:sinks=4"}) {
    for (const int n_tokens : {3, 64, 65, 300, 513, 1100, 2600}) {
      for (const int kind : {0, 1, 2, 3}) {
        FusedCase c;
        c.spec = spec;
        c.n_tokens = n_tokens;
        c.n_queries = std::min(n_tokens, 5);
        c.interleaved = kind % 2 == 0;
        if (kind == 1) c.window = 130;
        if (kind == 2) c.softcap = 20;
        if (kind == 3) c.alibi = true;
        EXPECT_LT(error(c), tolerance(c.spec)) << c.name() << ", kind " << kind;
      }
    }
  }
}

// What cannot be read code by code says so, and gives what rebuilding gives.
TEST_P(FusedAttention, TheRestIsRebuilt) {
  for (const char* spec :
       {"e4m3", "int4:group=8", "hadamard+f16", "int4:outliers=3%",
        "k=int3:per=channel,group=64,outliers=1%+v=int4",
        "k=klt:fit=128,anchor=1+k=int4:per=channel,group=64", "k=int4+v=e5m2",
        "int8+int4:group=8,older=99", "lowrank:rank=4,segment=128,residual=coded+int4"}) {
    FusedCase c;
    c.spec = spec;
    const FusedRun run(c, *backend_, 7);
    EXPECT_EQ(run.cache().read_path(*backend_, Precision::fast), ReadPath::rebuilt) << c.name();
    const std::vector<float> wanted = run.attend(*backend_, Precision::exact);
    const std::vector<float> found = run.attend(*backend_, Precision::fast);
    EXPECT_LT(rms(found, wanted) / rms(wanted, {}), kOnePlane) << c.name();
  }
  FusedCase plain;
  plain.spec = "int4";
  const FusedRun run(plain, *backend_, 7);
  EXPECT_EQ(run.cache().read_path(*backend_, Precision::exact), ReadPath::rebuilt);
}

TEST_P(FusedAttention, NeitherThreadsNorOtherQueriesMatter) {
  for (const char* spec : {"q8_0", "int3:per=channel,group=32,tail=20",
                           "k=klt:fit=128+k=int2:per=channel,group=64,sinks=4+v=hadamard+v=lm2"}) {
    // The newest queries of some stand on both sides of a border of parts.
    for (const int kind : {0, 1, 2, 3}) {
      const int window = kind == 0 ? 400 : 0;
      FusedCase c;
      c.spec = spec;
      c.n_tokens = kind == 1 ? 1500 : (kind == 2 ? 1540 : 1544);
      c.n_queries = 8;
      c.window = window;
      c.shape.n_heads = 6;
      c.shape.n_kv_heads = 2;
      const FusedRun run(c, *backend_, 3);
      const std::vector<float> together = run.attend(*backend_, Precision::fast);
      const auto one_thread = make_cpu_backend(1, GetParam());
      EXPECT_TRUE(test::same_bits(run.attend(*one_thread, Precision::fast), together)) << spec;
      for (int i = 0; i < c.n_queries; ++i) {
        const std::vector<float> alone = run.attend(*backend_, Precision::fast, i, 1);
        const auto row = together.begin() + i * static_cast<int64_t>(alone.size());
        EXPECT_TRUE(test::same_bits(alone, {row, row + static_cast<int64_t>(alone.size())}))
            << spec << ", query " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, FusedAttention, ::testing::ValuesIn(test::available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace kve
