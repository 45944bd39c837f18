// Oracle: the definition of every method in float64 (tests/oracle/make_selector_golden.py).
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cache/select/future_queries.h"
#include "cache/select/selector.h"
#include "fixture.h"

namespace kve {
namespace {

using Kind = SelectorSpec::Kind;

constexpr int kTokens = 160;
constexpr int kDim = 16;
constexpr int kHeads = 2;
constexpr int kGroup = 2;
constexpr int kKept = 40;

template <class T>
std::vector<T> golden(const std::string& name) {
  return testing::read_fixture<T>("selectors/" + name);
}

// The layer of the golden files.
struct Layer {
  explicit Layer(const std::string& mass_name, int n_queries) : mass(golden<float>(mass_name)) {
    for (int i = 0; i < kTokens; ++i) positions.push_back(i);
    for (int h = 0; h < kHeads; ++h) {
      HeadRows rows;
      rows.positions = positions;
      rows.keys = ConstMat(keys.data() + h * kTokens * kDim, kTokens, kDim);
      rows.values = ConstMat(values.data() + h * kTokens * kDim, kTokens, kDim);
      rows.mass = std::span(mass).subspan(static_cast<size_t>(h) * kTokens, kTokens);
      rows.n_queries = n_queries;
      rows.group = kGroup;
      rows.future_means = ConstMat(means.data() + h * kGroup * kDim, kGroup, kDim);
      rows.future_spread = ConstMat(spreads.data() + h * kGroup * kDim * kDim, kGroup * kDim, kDim);
      heads.push_back(rows);
    }
  }

  std::vector<int32_t> positions;
  std::vector<float> mass;
  std::vector<float> keys = golden<float>("keys.f32");
  std::vector<float> values = golden<float>("values.f32");
  std::vector<float> means = golden<float>("future_mean.f32");
  std::vector<float> spreads = golden<float>("future_spread.f32");
  std::vector<HeadRows> heads;
};

constexpr LayerPlace kPlace{
    .layer = 0, .n_layers = 1, .n_tokens = kTokens, .n_budget_tokens = kTokens};

struct Case {
  const char* name;
  SelectorSpec spec;
  const char* mass;
  int n_queries;
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

class SelectScores : public ::testing::TestWithParam<Case> {};

TEST_P(SelectScores, AgreeWithTheDefinition) {
  const Case& c = GetParam();
  const Layer layer(c.mass, c.n_queries);
  const auto selector = make_selector(c.spec, 1, kHeads);
  std::vector<std::vector<float>> scores(kHeads, std::vector<float>(kTokens));
  const std::vector<std::span<float>> out(scores.begin(), scores.end());
  selector->score(kPlace, layer.heads, out);
  const std::vector<double> expected = golden<double>(std::string(c.name) + ".f64");
  const size_t n = expected.size() / kHeads;
  for (size_t h = 0; h < kHeads; ++h) {
    // Scores compare the rows of a head: only tova's factor (a sum for a mean) is free.
    const double factor = c.spec.kind == Kind::tova ? kHeads * kGroup : 1;
    for (size_t r = 0; r < n; ++r) {
      const double want = expected[h * n + r];
      if (std::isinf(want)) continue;
      // Inputs and scores are rounded to float32.
      EXPECT_NEAR(double{scores[h][r]} / factor, want, 1e-5 * std::abs(want) + 1e-9)
          << c.name << " head " << h << " row " << r;
    }
  }
  const std::vector<int32_t> kept = golden<int32_t>(std::string("kept_") + c.name + ".i32");
  const auto chosen = choose_rows(*selector, kPlace, layer.heads);
  ASSERT_EQ(chosen.size(), kHeads);
  for (size_t h = 0; h < kHeads; ++h) {
    const std::vector<int32_t> want(kept.begin() + static_cast<long>(h) * kKept,
                                    kept.begin() + static_cast<long>(h + 1) * kKept);
    EXPECT_EQ(chosen[h], want) << c.name << " head " << h;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, SelectScores,
    ::testing::Values(
        Case{"snapkv",
             {.kind = Kind::snapkv, .share = 0.25, .window = 16, .kernel = 5},
             "mass_16.f32",
             16},
        Case{"tova", {.kind = Kind::tova, .share = 0.25, .recent = 1}, "mass_1.f32", 1},
        Case{"observed", {.kind = Kind::observed, .share = 0.25}, "mass_all.f32", kTokens},
        Case{"knorm", {.kind = Kind::knorm, .share = 0.25}, "mass_1.f32", 1},
        Case{"keydiff", {.kind = Kind::keydiff, .share = 0.25}, "mass_1.f32", 1},
        Case{"expected", {.kind = Kind::expected, .share = 0.25, .sinks = 4}, "mass_1.f32", 1}),
    [](const auto& tested) { return tested.param.name; });

TEST(SelectScoresJointly, AgreesWithTheDefinition) {
  const Layer layer("mass_16.f32", 16);
  const auto selector = make_selector(
      {.kind = Kind::snapkv, .joint = true, .share = 0.25, .window = 16, .kernel = 5, .alpha = 0.2},
      1, kHeads);
  const auto chosen = choose_rows(*selector, kPlace, layer.heads);
  const std::vector<int32_t> golden_rows = golden<int32_t>("kept_adakv.i32");
  std::vector<int32_t> found = {static_cast<int32_t>(chosen[0].size()),
                                static_cast<int32_t>(chosen[1].size())};
  for (const auto& head : chosen) found.insert(found.end(), head.begin(), head.end());
  EXPECT_EQ(found, golden_rows);
  EXPECT_NE(chosen[0].size(), chosen[1].size()) << "the golden layer does not test raggedness";
}

TEST(SelectTogether, RowsOfAllGroupsCompeteForTheSumOfTheirBudgets) {
  const GroupScores groups[] = {{.scores = {5, 1, 4, 1}, .budget = 2},
                                {.scores = {0, 3, 2}, .budget = 2},
                                {.scores = {9, 8}, .budget = 1}};
  using Rows = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(choose_together(groups), (Rows{{0, 2}, {1}, {0, 1}}));
  // What always stays does so above the budget, and budgets above the rows count as many.
  const GroupScores always[] = {{.scores = {kAlwaysKept, kAlwaysKept, kAlwaysKept}, .budget = 1},
                                {.scores = {1}, .budget = 1}};
  EXPECT_EQ(choose_together(always), (Rows{{0, 1, 2}, {}}));
  const GroupScores small[] = {{.scores = {1, 2}, .budget = 100}, {.scores = {0}, .budget = 1}};
  EXPECT_EQ(choose_together(small), (Rows{{0, 1}, {0}}));
  // Of equal rows the first.
  const GroupScores equal[] = {{.scores = {1, 1}, .budget = 1}, {.scores = {1, 1}, .budget = 2}};
  EXPECT_EQ(choose_together(equal), (Rows{{0, 1}, {0}}));
}

TEST(SelectTogether, RowsCostTheHeadsThatKeepThem) {
  // 2 * 2 + 1 * 4 rows of a head.
  const GroupScores groups[] = {{.scores = {5, 1, 7}, .budget = 2, .n_heads = 2},
                                {.scores = {6, 9, 2, 4}, .budget = 4, .n_heads = 1}};
  using Rows = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(choose_together(groups), (Rows{{0, 2}, {0, 1, 2, 3}}));
  const GroupScores fewer[] = {{.scores = {5, 1, 7}, .budget = 2, .n_heads = 4},
                               {.scores = {6, 9, 2, 4}, .budget = 1, .n_heads = 2}};
  EXPECT_EQ(choose_together(fewer), (Rows{{0, 2}, {0, 1}})) << "a row that does not fit whole";
}

TEST(SelectTopRows, OfEquallyBadRowsTheNewestGo) {
  const std::vector<float> scores = {3, kAlwaysKept, 1, 2, 1, -kAlwaysKept, 4, -kAlwaysKept, 3};
  using Rows = std::vector<int32_t>;
  EXPECT_EQ(top_rows(scores, 9), (Rows{0, 1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(top_rows(scores, 8), (Rows{0, 1, 2, 3, 4, 5, 6, 8}));
  EXPECT_EQ(top_rows(scores, 7), (Rows{0, 1, 2, 3, 4, 6, 8}));
  EXPECT_EQ(top_rows(scores, 6), (Rows{0, 1, 2, 3, 6, 8}));
  EXPECT_EQ(top_rows(std::span(scores).first(2), 1), (Rows{1}));
  EXPECT_EQ(top_rows(scores, 0), Rows());
}

TEST(SelectH2o, SumsMassAndKeepsTheNewest) {
  const Layer layer("mass_all.f32", kTokens);
  const auto selector = make_selector({.kind = Kind::h2o, .share = 0.25, .recent = -1}, 1, kHeads);
  const auto chosen = choose_rows(*selector, kPlace, layer.heads);
  for (size_t h = 0; h < kHeads; ++h) {
    ASSERT_EQ(chosen[h].size(), kKept);
    for (int i = 0; i < 20; ++i) EXPECT_EQ(chosen[h][static_cast<size_t>(20 + i)], 140 + i);
    // The 20 heaviest of the others.
    std::vector<float> others(layer.heads[h].mass.begin(), layer.heads[h].mass.begin() + 140);
    std::vector<int32_t> heaviest(chosen[h].begin(), chosen[h].begin() + 20);
    EXPECT_EQ(heaviest, top_rows(others, 20));
  }
}

TEST(SelectFuture, TurnsMomentsToFuturePositions) {
  const std::vector<float> queries = golden<float>("queries.f32");
  QueryMoments moments(kHeads * kGroup, kDim, std::make_shared<MemoryCounter>());
  // In parts, as a prompt comes in chunks; without the first four.
  ThreadPool pool(2);
  for (int row = 4; row < kTokens; row += 39) {
    moments.add(pool, {queries.data() + row * 64, 39, 64});
  }
  ASSERT_EQ(moments.count(), kTokens - 4);
  std::vector<double> frequencies;
  for (int p = 0; p < kDim / 2; ++p) frequencies.push_back(std::pow(1e4, -2.0 * p / kDim));
  const std::vector<float> want_means = golden<float>("future_mean.f32");
  const std::vector<float> want_spreads = golden<float>("future_spread.f32");
  for (int head = 0; head < kHeads * kGroup; ++head) {
    std::vector<double> mean(kDim);
    std::vector<double> covariance(kDim * kDim);
    moments.mean(head, mean);
    moments.covariance(head, covariance);
    std::vector<float> means(kDim);
    std::vector<float> spread(kDim * kDim);
    turn_to_future(frequencies, false, kTokens, 512, mean, covariance, means.data(),
                   {spread.data(), kDim, kDim});
    for (size_t i = 0; i < kDim; ++i) {
      EXPECT_NEAR(means[i], want_means[static_cast<size_t>(head) * kDim + i], 1e-6);
    }
    for (size_t i = 0; i < kDim * kDim; ++i) {
      EXPECT_NEAR(spread[i], want_spreads[static_cast<size_t>(head) * kDim * kDim + i], 1e-6);
    }
  }
}

}  // namespace
}  // namespace kve
