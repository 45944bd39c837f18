// Scripted attention: which rows stay, step by step, worked out by hand from each method's
// definition.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "cache/select/h2o_bench.h"
#include "cache/select/selector.h"

namespace kve {
namespace {

using Kind = SelectorSpec::Kind;
using RowSets = std::vector<std::vector<int32_t>>;

std::vector<int32_t> first_positions(int n) {
  std::vector<int32_t> out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

LayerPlace place_of(int n_tokens, int layer = 0, int n_layers = 1) {
  return {.layer = layer, .n_layers = n_layers, .n_tokens = n_tokens, .n_budget_tokens = n_tokens};
}

// Heads of `masses`, all at positions 0, 1, ...
RowSets choose(const SelectorSpec& spec, const std::vector<std::vector<float>>& masses,
               int heads_per_group = 1, int n_queries = 1) {
  const int n = static_cast<int>(masses[0].size());
  const std::vector<int32_t> positions = first_positions(n);
  std::vector<HeadRows> heads;
  for (const std::vector<float>& mass : masses) {
    HeadRows rows;
    rows.positions = positions;
    rows.mass = mass;
    rows.n_queries = n_queries;
    heads.push_back(rows);
  }
  const auto selector = make_selector(spec, 1, static_cast<int>(masses.size()));
  return choose_rows(*selector, place_of(n), heads, heads_per_group);
}

TEST(SelectTrace, H2oOfTheBenchmark) {
  // One head, ratios of a quarter of the 9 keys that the first decode query sees: 2 and 2.
  std::vector<float> scores(9);
  const auto step = [&](const std::vector<float>& weights) {
    scores.resize(weights.size());
    return h2o_bench_step(weights, 2, 2, scores);
  };
  // Key 7 is in neither set for one step: the published code's off-by-one.
  EXPECT_EQ(step({.30f, .05f, .20f, .05f, .10f, .05f, .05f, .10f, .10f}),
            (std::vector<uint8_t>{1, 0, 1, 0, 0, 0, 0, 0, 1, 1}));
  EXPECT_EQ(scores, (std::vector<float>{.30f, 0, .20f, 0, 0, 0, 0, .10f, .10f}));
  // It got nothing in this step, yet competes with its old score.
  EXPECT_EQ(step({.05f, 0, .02f, 0, 0, 0, 0, 0, .33f, .60f}),
            (std::vector<uint8_t>{1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1}));
  // Scores are now .35, .22 (key 2), .43 (key 8) before the newest two: key 8 comes back.
  EXPECT_EQ(step({0, 0, 0, 0, 0, 0, 0, 0, 0, .5f, .5f}),
            (std::vector<uint8_t>{1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1}));
}

TEST(SelectTrace, CanonicalH2oForgetsWhatItDropped) {
  // A budget of 4, of which 2 are the newest. Attention per step over the rows that are left.
  const SelectorSpec spec{.kind = Kind::h2o, .tokens = 4, .recent = 2};
  const auto selector = make_selector(spec, 1, 1);
  std::vector<int32_t> positions = {0, 1, 2, 3};
  std::vector<float> mass = {1.0f, 2.0f, .5f, .5f};  // of the prompt's queries
  const auto step = [&](std::vector<float> weights) {
    positions.push_back(positions.back() + 1);
    mass.push_back(0);
    for (size_t r = 0; r < mass.size(); ++r) mass[r] += weights[r];
    HeadRows rows;
    rows.positions = positions;
    rows.mass = mass;
    const auto kept = choose_rows(*selector, place_of(positions.back() + 1), {&rows, 1})[0];
    std::vector<int32_t> left;
    std::vector<float> left_mass;
    for (const int32_t row : kept) {
      left.push_back(positions[static_cast<size_t>(row)]);
      left_mass.push_back(mass[static_cast<size_t>(row)]);
    }
    positions = left;
    mass = left_mass;
  };
  step({.25f, .25f, .25f, 0, .25f});
  EXPECT_EQ(positions, (std::vector<int32_t>{0, 1, 3, 4}));  // 2 had .75
  step({0, .25f, .75f, 0, 0});
  // 0 has 1.25 and 1 has 2.5; 3 has 1.25 as well, and of equal ones the older stays.
  EXPECT_EQ(positions, (std::vector<int32_t>{0, 1, 4, 5}));
  step({0, 0, 1, 0, 0});
  // 4 has 1.25 too: ties go to 0.
  EXPECT_EQ(positions, (std::vector<int32_t>{0, 1, 5, 6}));
  step({0, 0, 1.5f, 0, 0});
  EXPECT_EQ(positions, (std::vector<int32_t>{1, 5, 6, 7}));
}

// Token by token beside choose_rows() of the rows that are left: the row that goes, found among all
// that ever were.
TEST(SelectTrace, TheWorstRowOfAllThatWere) {
  Random random(5);
  for (const Kind kind : {Kind::h2o, Kind::streaming, Kind::tova}) {
    const SelectorSpec spec{.kind = kind, .tokens = 70, .sinks = 4, .recent = 20};
    const auto selector = make_selector(spec, 1, 2);
    std::vector<int32_t> positions = first_positions(70);
    std::vector<std::vector<float>> mass(2, std::vector<float>(70));
    std::vector<uint64_t> dead(6);
    std::vector<int32_t> kept = positions;
    for (int n = 71; n <= 300; ++n) {
      positions.push_back(n - 1);
      kept.push_back(n - 1);
      for (std::vector<float>& own : mass) {
        own.push_back(0);
        // Few values, so that some are equal.
        for (float& sum : own) sum += static_cast<float>(random.bits() % 4);
      }
      std::vector<HeadRows> all(2);
      std::vector<HeadRows> living(2);
      std::vector<std::vector<float>> left(2);
      for (size_t h = 0; h < 2; ++h) {
        all[h].positions = positions;
        all[h].mass = mass[h];
        for (const int32_t row : kept) left[h].push_back(mass[h][static_cast<size_t>(row)]);
        living[h].positions = kept;
        living[h].mass = left[h];
      }
      const std::vector<const uint64_t*> bits(2, dead.data());
      const auto going = worst_rows(*selector, place_of(n), all, bits, 2);
      ASSERT_TRUE(going.has_value());
      const int32_t worst = (*going)[0];
      std::vector<int32_t> expected;
      const RowSets chosen = choose_rows(*selector, place_of(n), living, 2);
      for (const int32_t row : chosen[0]) expected.push_back(kept[static_cast<size_t>(row)]);
      std::erase(kept, worst);
      ASSERT_EQ(kept, expected) << n;
      dead[static_cast<size_t>(worst) / 64] |= uint64_t{1} << (worst % 64);
    }
    // Where two rows have to go, it is for choose_rows() to say.
    HeadRows rows;
    const std::vector<float> none(302);
    const std::vector<int32_t> more = first_positions(302);
    rows.positions = more;
    rows.mass = none;
    const uint64_t* const bits = dead.data();
    EXPECT_FALSE(worst_rows(*selector, place_of(302), {&rows, 1}, {&bits, 1}).has_value());
  }
}

TEST(SelectTrace, StreamingKeepsSinksAndTheNewest) {
  // 8 tokens, 2 sinks, a window of 3.
  const std::vector<float> none(8);
  EXPECT_EQ(choose({.kind = Kind::streaming, .tokens = 5, .sinks = 2}, {none}),
            (RowSets{{0, 1, 5, 6, 7}}));
  EXPECT_EQ(choose({.kind = Kind::window, .tokens = 3}, {none}), (RowSets{{5, 6, 7}}));
  EXPECT_EQ(choose({.kind = Kind::window, .tokens = 100}, {none}), RowSets{first_positions(8)});
  EXPECT_EQ(choose({.kind = Kind::full}, {none}), RowSets{first_positions(8)});
}

TEST(SelectTrace, SnapKvAveragesNeighboursAndKeepsItsWindow) {
  // 10 tokens, a window of 2, averages over 3: key 3 lifts 2 and 4; key 7's neighbours 6 and (in
  // the window, where nothing is averaged) 8.
  const std::vector<float> mass = {.1f, 0, 0, .9f, 0, 0, 0, .3f, .3f, .4f};
  const SelectorSpec spec{.kind = Kind::snapkv, .tokens = 6, .window = 2, .kernel = 3};
  // Pooled: 0 .033, 1 .033, 2 .3, 3 .3, 4 .3, 5 0, 6 .1, 7 .1.
  EXPECT_EQ(choose(spec, {mass}, 1, 2), (RowSets{{2, 3, 4, 6, 8, 9}}));
  // A prompt that is no longer than the window has no judges.
  EXPECT_EQ(choose({.kind = Kind::snapkv, .tokens = 3, .window = 10, .kernel = 3}, {mass}),
            RowSets{first_positions(10)});
}

TEST(SelectTrace, TovaHasOneSetForAllHeads) {
  const SelectorSpec spec{.kind = Kind::tova, .tokens = 3, .recent = 1};
  // Sums are .9, .5, .6, 0; the last token stays.
  EXPECT_EQ(choose(spec, {{.8f, .1f, .1f, 0}, {.1f, .4f, .5f, 0}}),
            (RowSets{{0, 2, 3}, {0, 2, 3}}));
}

TEST(SelectTrace, ObservedDividesByTheQueriesThatSawAToken) {
  // Sums favour token 0 (four queries saw it), means token 2.
  const std::vector<std::vector<float>> masses = {{1.6f, .6f, 1.0f, .8f}};
  EXPECT_EQ(choose({.kind = Kind::observed, .tokens = 2}, masses), (RowSets{{2, 3}}));
  EXPECT_EQ(choose({.kind = Kind::h2o, .tokens = 2}, masses), (RowSets{{0, 2}}));
}

TEST(SelectTrace, HeadsThatSharePagesShareTheirRows) {
  const std::vector<std::vector<float>> masses = {{.9f, .1f, .0f, .3f}, {.0f, .1f, .8f, .3f}};
  const SelectorSpec spec{.kind = Kind::h2o, .tokens = 2};
  EXPECT_EQ(choose(spec, masses), (RowSets{{0, 3}, {2, 3}}));
  EXPECT_EQ(choose(spec, masses, 2), (RowSets{{0, 2}}));
}

TEST(SelectTrace, AdaKvMovesBudgetsBetweenHeads) {
  // Four rows in all: the first head's three good ones and the other's best, which alpha protects.
  const std::vector<std::vector<float>> masses = {{.9f, .8f, .7f, .6f}, {.2f, .1f, .05f, .3f}};
  SelectorSpec spec{.kind = Kind::h2o, .joint = true, .tokens = 2, .alpha = 0.5};
  EXPECT_EQ(choose(spec, masses), (RowSets{{0, 1, 2}, {3}}));
  spec.alpha = 0;
  EXPECT_EQ(choose(spec, masses), (RowSets{{0, 1, 2, 3}, {}}));
  spec.alpha = 1;
  EXPECT_EQ(choose(spec, masses), (RowSets{{0, 1}, {0, 3}}));
}

std::vector<int> pyramid(int n_tokens, double share, int n_layers, double beta, int window) {
  const SelectorSpec spec{.kind = Kind::pyramidkv, .share = share, .window = window, .beta = beta};
  const auto selector = make_selector(spec, n_layers, 1);
  std::vector<int> out;
  for (int l = 0; l < n_layers; ++l)
    out.push_back(selector->budget(place_of(n_tokens, l, n_layers), 0));
  return out;
}

TEST(SelectTrace, PyramidOfBudgets) {
  // 8,000 tokens, a quarter kept: from 2,000 / 20 = 100 in the last layer up to 3,900, by steps of
  // 950. The sum is that of equal budgets.
  EXPECT_EQ(pyramid(8000, 0.25, 5, 20, 64), (std::vector<int>{3900, 2950, 2000, 1050, 100}));
  // Half of 1,000: the first layer cannot keep more than the 936 before the window.
  EXPECT_EQ(pyramid(1000, 0.5, 3, 20, 64), (std::vector<int>{936, 500, 64}));
  // The smallest budget, 50 / 20, is below the window: equal budgets.
  EXPECT_EQ(pyramid(200, 0.25, 3, 20, 64), (std::vector<int>{50, 50, 50}));
  EXPECT_EQ(pyramid(8000, 0.25, 1, 20, 64), (std::vector<int>{3900}));
}

TEST(SelectTrace, RandomIsAFunctionOfItsSeed) {
  const std::vector<float> none(1000);
  const auto kept = [&](uint64_t seed) {
    return choose({.kind = Kind::random, .share = 0.25, .seed = seed}, {none, none});
  };
  const RowSets one = kept(1);
  EXPECT_EQ(one[0].size(), 250u);
  EXPECT_EQ(one, kept(1));
  EXPECT_NE(one, kept(2));
  EXPECT_NE(one[0], one[1]);
}

TEST(SelectTrace, SharesOfShortPromptsKeepSinksAndRecentTokens) {
  const std::vector<float> mass = {0, 0, 0, 0, 9, 9, 0, 0};
  EXPECT_EQ(choose({.kind = Kind::h2o, .share = 0.25, .sinks = 2, .recent = 2}, {mass}),
            (RowSets{{0, 1, 6, 7}}));
}

TEST(SelectTrace, RowsWithoutAScoreGoFirst) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(choose({.kind = Kind::h2o, .tokens = 2}, {{nan, 0, nan, .5f}}), (RowSets{{1, 3}}));
}

class GatesFile {
 public:
  explicit GatesFile(const std::string& text)
      : path_(::testing::TempDir() + "gates_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::ofstream(path_) << text;
  }
  ~GatesFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

SelectorSpec duo(const std::string& path) {
  return {.kind = Kind::duo, .sinks = 1, .recent = 2, .streaming = 0.5, .gates = path};
}

TEST(SelectDuo, HeadsOfLowGatesStream) {
  const GatesFile file("0.9\t0.1\n0.2 0.8\n");
  const auto selector = make_selector(duo(file.path()), 2, 2);
  const std::vector<int32_t> positions = first_positions(6);
  HeadRows rows;
  rows.positions = positions;
  const std::vector<HeadRows> heads(2, rows);
  EXPECT_EQ(choose_rows(*selector, place_of(6, 0, 2), heads),
            (RowSets{first_positions(6), {0, 4, 5}}));
  EXPECT_EQ(choose_rows(*selector, place_of(6, 1, 2), heads),
            (RowSets{{0, 4, 5}, first_positions(6)}));
}

template <class Failure>
std::string refusal(const std::string& text) {
  const GatesFile file(text);
  try {
    make_selector(duo(file.path()), 2, 2);
  } catch (const Failure& error) {
    return error.what();
  }
  return "accepted";
}

TEST(SelectDuo, RefusesOtherFiles) {
  EXPECT_NE(refusal<FormatError>("0.9 0.1\n").find("expected 2 lines, one per layer, found 1"),
            std::string::npos);
  EXPECT_NE(refusal<FormatError>("0.9 0.1 0.3\n1 1 1").find("line 1: expected 2 numbers"),
            std::string::npos);
  EXPECT_NE(refusal<FormatError>("0.9 1.1\n1 1").find("from 0 to 1, found 1.1"), std::string::npos);
  EXPECT_NE(refusal<FormatError>("0.9 nan\n1 1").find("line 1"), std::string::npos);
  EXPECT_NE(refusal<FormatError>("0.9 x\n1 1").find("line 1"), std::string::npos);
  EXPECT_NE(refusal<FormatError>(std::string(3 << 20, '1')).find("at most 1048576 bytes"),
            std::string::npos);
  SelectorSpec missing = duo("/no/such/file");
  EXPECT_THROW(make_selector(missing, 2, 2), IoError);
}

}  // namespace
}  // namespace kve
