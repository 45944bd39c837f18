// Attention where tokens were dropped, and the weights that rows get.
#include "kernels/attend_testing.h"

namespace kve {
namespace {

using test::available_isas;
using test::Case;
using test::kBound;
using test::kRoundedBound;
using test::Problem;

class AttendDropped : public test::Attend {};

std::string name_of(const Case& c) {
  return std::to_string(c.n_rows) + " rows, " + std::to_string(c.n_queries) + " queries, " +
         std::to_string(c.sinks) + " sinks" + (c.gaps ? ", gaps" : "") + (c.dead ? ", dead" : "") +
         (c.alibi ? ", alibi" : "");
}

template <class Visit>
void each_case(const Visit& visit) {
  for (const int rows : {40, 64, 200, 700, 1300}) {
    for (const int queries : {1, 7, 20}) {
      for (const int sinks : {0, 5}) {
        for (const bool gaps : {false, true}) {
          for (const bool dead : {false, true}) {
            Case c;
            c.key_dim = c.value_dim = 32;
            c.n_rows = rows;
            c.n_queries = queries;
            c.sinks = sinks;
            c.gaps = gaps;
            c.dead = dead;
            c.alibi = gaps && rows == 200;
            visit(c);
          }
        }
      }
    }
  }
}

TEST_P(AttendDropped, PositionsWithGapsAndDeadRows) {
  each_case([&](const Case& c) { check(c, name_of(c)); });
}

TEST_P(AttendDropped, CodedPages) {
  CodecSpec coded;
  coded.id = CodecId::coded;
  coded.coding = {Coding::asym, 4, Fit::range};
  coded.group = 32;
  each_case([&](Case c) {
    c.k_codec = c.v_codec = coded;
    check(c, name_of(c) + ", coded");
  });
}

// The base 2 logarithm of what weights were divided by, through what it makes of the largest score.
TEST_P(AttendDropped, WeightsOfRows) {
  for (const MassOf what : {MassOf::sum, MassOf::most}) {
    each_case([&](Case c) {
      for (const Precision precision : {Precision::exact, Precision::fast}) {
        c.precision = precision;
        const Problem problem(c);
        std::vector<float> log_sums;
        problem.run(*backend_, &log_sums);
        // Of the last queries only, too.
        for (const int first : {0, c.n_queries / 2}) {
          std::vector<float> mass(static_cast<size_t>(c.n_kv_heads * c.n_rows));
          std::vector<float*> heads;
          for (int h = 0; h < c.n_kv_heads; ++h) heads.push_back(mass.data() + h * c.n_rows);
          const ConstMat queries = problem.queries();
          const MassTask task = {.q = queries.block(first, queries.rows - first),
                                 .heads = problem.heads,
                                 .first_pos = problem.first_query() + first,
                                 .log_sums = log_sums.data() + first * c.n_heads,
                                 .mass = heads};
          backend_->attention_mass(problem.params, what, {&task, 1});
          const double bound = precision == Precision::exact ? kBound : kRoundedBound;
          EXPECT_LT(test::relative_error(mass, problem.mass(what, first)), bound) << name_of(c);
        }
      }
    });
  }
}

// Many queries that see whole tiles, which are weighed in int16 where that is there, and some that
// see parts of them.
TEST_P(AttendDropped, WeightsOfManyQueries) {
  const double bound = GetParam() == "avx512" ? 1e-3 : kRoundedBound;
  for (const int dim : {16, 40, 64, 128}) {
    for (const int rows : {200, 700}) {
      Case c;
      c.n_rows = c.k_tail = c.v_tail = rows;
      c.n_queries = 70;
      c.n_heads = 6;
      c.key_dim = c.value_dim = dim;
      c.precision = Precision::fast;
      const Problem problem(c);
      std::vector<float> log_sums;
      problem.run(*backend_, &log_sums);
      for (const MassOf what : {MassOf::sum, MassOf::most}) {
        std::vector<float> mass(static_cast<size_t>(c.n_kv_heads * rows));
        std::vector<float*> heads;
        for (int h = 0; h < c.n_kv_heads; ++h) heads.push_back(mass.data() + h * rows);
        const MassTask task = {problem.queries(), problem.heads, problem.first_query(),
                               log_sums.data(), heads};
        backend_->attention_mass(problem.params, what, {&task, 1});
        EXPECT_LT(test::relative_error(mass, problem.mass(what, 0)), bound) << rows << " x " << dim;
      }
    }
  }
}

TEST_P(AttendDropped, WeightsAreAddedToWhatIsThere) {
  const Problem problem(Case{});
  std::vector<float> log_sums;
  problem.run(*backend_, &log_sums);
  std::vector<float> mass[2];
  for (int times = 0; times < 2; ++times) {
    mass[times].resize(static_cast<size_t>(2 * problem.shape.n_rows));
    float* heads[] = {mass[times].data(), mass[times].data() + problem.shape.n_rows};
    const MassTask task = {problem.queries(), problem.heads, problem.first_query(), log_sums.data(),
                           heads};
    for (int i = 0; i <= times; ++i) {
      backend_->attention_mass(problem.params, MassOf::sum, {&task, 1});
    }
  }
  for (size_t i = 0; i < mass[0].size(); ++i) EXPECT_EQ(mass[1][i], 2 * mass[0][i]);
}

TEST_P(AttendDropped, WeightsDoNotDependOnThreads) {
  Case c;
  c.n_rows = 1500;
  c.n_queries = 300;
  const Problem problem(c);
  std::vector<float> log_sums;
  problem.run(*backend_, &log_sums);
  std::vector<float> expected;
  for (const int threads : {1, 2, 3, 8}) {
    std::vector<float> mass(static_cast<size_t>(2 * c.n_rows));
    float* heads[] = {mass.data(), mass.data() + c.n_rows};
    const MassTask task = {problem.queries(), problem.heads, problem.first_query(), log_sums.data(),
                           heads};
    make_cpu_backend(threads, GetParam())->attention_mass(problem.params, MassOf::sum, {&task, 1});
    if (expected.empty()) expected = mass;
    EXPECT_TRUE(test::same_bits(mass, expected)) << threads;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, AttendDropped, ::testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace kve
