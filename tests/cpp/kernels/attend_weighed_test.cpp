// Attention that gives rows their weights on its way (AttendTask::mass).
#include "kernels/attend_testing.h"

namespace kve {
namespace {

using test::available_isas;
using test::Case;
using test::kBound;
using test::kRoundedBound;
using test::Problem;

// Rows as they are, in the precision that has a way of its own.
Case plain_case(int rows, int queries) {
  Case c;
  c.n_rows = c.k_tail = c.v_tail = rows;
  c.n_queries = queries;
  c.precision = Precision::fast;
  return c;
}

class AttendWeighed : public ::testing::TestWithParam<std::string> {
 protected:
  std::vector<float> zeros(const Case& c) const {
    return std::vector<float>(static_cast<size_t>(c.n_kv_heads * c.n_rows));
  }
  // In both precisions: what comes out, the sums, and the weights of rows.
  void check(Case c, const std::string& what, double fast_bound) {
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      c.precision = precision;
      const bool exact = precision == Precision::exact;
      const Problem problem(c);
      std::vector<float> plain_sums;
      problem.run(*backend_, &plain_sums);
      std::vector<float> log_sums;
      std::vector<float> mass = zeros(c);
      const std::vector<float> out = problem.run(*backend_, &log_sums, &mass);
      const double bound = exact ? kBound : kRoundedBound;
      EXPECT_LT(test::relative_error(out, problem.reference()), bound) << what;
      EXPECT_LT(test::relative_error(log_sums, {plain_sums.begin(), plain_sums.end()}), bound)
          << what;
      EXPECT_LT(test::relative_error(mass, problem.mass(MassOf::sum, 0)),
                exact ? kBound : fast_bound)
          << what << (exact ? "" : ", fast");
    }
  }
  struct Result {
    std::vector<float> out;
    std::vector<float> mass;
  };
  Result weigh(Backend& backend, const Problem& problem) const {
    std::vector<float> log_sums;
    Result result = {{}, zeros(problem.shape)};
    result.out = problem.run(backend, &log_sums, &result.mass);
    return result;
  }
  // Weights of many queries are kept in bf16, to 2^-9 of each, and come from scores in int16, which
  // are better than that.
  double many_bound() const { return GetParam() == "avx512" ? 0x1p-8 : kRoundedBound; }

  std::unique_ptr<Backend> backend_ = make_cpu_backend(2, GetParam());
};

std::string name_of(const Case& c) {
  return std::to_string(c.n_rows) + " rows from " + std::to_string(c.first_pos) + ", " +
         std::to_string(c.n_queries) + " queries of " + std::to_string(c.n_heads) + " heads to " +
         std::to_string(c.n_kv_heads) + ", dim " + std::to_string(c.key_dim) +
         (c.gaps ? ", gaps" : "") + (c.dead ? ", dead" : "") + (c.alibi ? ", alibi" : "") +
         (c.window > 0 ? ", window" : "") + (c.softcap > 0 ? ", softcap" : "");
}

TEST_P(AttendWeighed, ManyQueriesOfEveryShape) {
  const int heads[][2] = {{4, 2}, {9, 3}, {7, 1}, {100, 1}, {2, 2}};
  for (const auto& [n_heads, n_kv_heads] : heads) {
    for (const int rows : {16, 64, 131, 700}) {
      for (const int dim : {16, 40, 80}) {
        Case c;
        c.n_heads = n_heads;
        c.n_kv_heads = n_kv_heads;
        c.n_rows = c.k_tail = c.v_tail = rows;
        c.n_queries = std::min(rows, rows < 700 ? 16 : 70);
        c.key_dim = dim;
        c.value_dim = dim == 40 ? 24 : dim;
        check(c, name_of(c), many_bound());
      }
    }
  }
}

TEST_P(AttendWeighed, ManyQueriesThatSeeSomeRows) {
  for (const int queries : {9, 70, 200}) {
    for (int kind = 0; kind < 6; ++kind) {
      Case c;
      c.n_rows = c.k_tail = c.v_tail = 700;
      c.n_queries = queries;
      c.gaps = kind == 1;
      c.alibi = kind == 1 || kind == 2;
      c.window = kind == 3 || kind == 5 ? 130 : 0;
      c.first_pos = kind == 4 || kind == 5 ? 1000 : 0;
      c.softcap = kind == 5 ? 20.0f : 0.0f;
      check(c, name_of(c), many_bound());
    }
  }
}

// Elsewhere weights take a second pass.
TEST_P(AttendWeighed, WhatIsNotPlain) {
  CodecSpec coded;
  coded.id = CodecId::coded;
  coded.coding = {Coding::asym, 4, Fit::range};
  coded.group = 32;
  for (const int queries : {1, 5, 70}) {
    for (int kind = 0; kind < 4; ++kind) {
      Case c;
      c.n_rows = 700;
      c.n_queries = queries;
      c.dead = kind == 1;
      if (kind >= 2) c.k_codec = c.v_codec = coded;
      if (kind == 3) c.k_codec.id = c.v_codec.id = CodecId::f32;
      check(c, name_of(c), kRoundedBound);
    }
  }
}

// Of one query the scores are kept: with rows as they are, as exact as its attention.
TEST_P(AttendWeighed, OneQuery) {
  for (const int rows : {1, 40, 64, 300, 1300}) {
    for (int kind = 0; kind < 5; ++kind) {
      Case c;
      c.n_heads = 9;
      c.n_kv_heads = 3;
      c.n_rows = rows;
      c.k_tail = c.v_tail = rows;
      c.gaps = kind == 1;
      c.alibi = kind == 1;
      c.dead = kind == 2;
      c.window = kind == 3 ? 100 : 0;
      c.first_pos = kind == 4 ? 77 : 0;
      check(c, name_of(c), kBound);
    }
  }
}

TEST_P(AttendWeighed, WeightsAreAddedToWhatIsThere) {
  for (const int queries : {1, 70}) {
    const Problem problem(plain_case(300, queries));
    const std::vector<float> once = weigh(*backend_, problem).mass;
    std::vector<float> log_sums;
    std::vector<float> twice = once;
    problem.run(*backend_, &log_sums, &twice);
    for (size_t i = 0; i < once.size(); ++i) EXPECT_FLOAT_EQ(twice[i], 2 * once[i]);
  }
}

TEST_P(AttendWeighed, WeightsDoNotDependOnThreads) {
  for (const int queries : {1, 300}) {
    const Problem problem(plain_case(1500, queries));
    const Result expected = weigh(*make_cpu_backend(1, GetParam()), problem);
    for (const int threads : {2, 3, 8}) {
      const Result result = weigh(*make_cpu_backend(threads, GetParam()), problem);
      EXPECT_TRUE(test::same_bits(result.mass, expected.mass)) << threads;
      EXPECT_TRUE(test::same_bits(result.out, expected.out)) << threads;
    }
  }
}

// What a row without numbers comes to is left to the attention without weights.
TEST_P(AttendWeighed, BrokenValues) {
  Problem problem(plain_case(300, 70));
  problem.v[0].tail[static_cast<size_t>(290 * problem.shape.value_dim)] = 0x7c00;  // infinity
  const std::vector<float> plain = problem.run(*backend_);
  const std::vector<float> out = weigh(*backend_, problem).out;
  ASSERT_EQ(out.size(), plain.size());
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(std::isfinite(out[i]), std::isfinite(plain[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, AttendWeighed, ::testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace kve
