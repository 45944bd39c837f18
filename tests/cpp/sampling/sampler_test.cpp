#include "sampling/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "sampling/stages.h"

namespace kve {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A row of logits that is the same everywhere: multiples of 2^-16 below `range`, with ties.
std::vector<float> random_logits(size_t n, uint64_t seed, float range = 16) {
  Random random(seed, 99);
  std::vector<float> logits(n);
  for (float& logit : logits) {
    logit = static_cast<float>(random.bits() & 0xffff) * 0x1p-16f * range - range / 2;
  }
  return logits;
}

// Everything off: the plain softmax at temperature 1.
SamplingOptions plain() {
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 0;
  options.top_p = 1;
  options.min_p = 0;
  return options;
}

SamplingOptions greedy() {
  SamplingOptions options;
  options.temperature = 0;
  return options;
}

// The definition of every stage, written independently with library functions in float64.
class Reference {
 public:
  Reference(const SamplingOptions& options, std::span<const float> logits,
            std::span<const Token> history)
      : o_(options) {
    for (size_t i = 0; i < logits.size(); ++i) rows_.push_back({static_cast<Token>(i), logits[i]});
    shape(history);
    by([](const Row& a, const Row& b) { return a.logit > b.logit; });
    if (o_.top_k > 0) cut(static_cast<size_t>(std::max(o_.top_k, o_.min_keep)));
    if (o_.typical_p < 1) typical();
    by([](const Row& a, const Row& b) { return a.logit > b.logit; });
    if (o_.top_p < 1) top_p();
    if (o_.min_p > 0) min_p();
  }

  std::map<Token, double> probabilities() const {
    std::map<Token, double> out;
    const std::vector<double> p = softmax(o_.temperature);
    for (size_t i = 0; i < rows_.size(); ++i) out[rows_[i].token] = p[i];
    return out;
  }
  double logit(Token token) const { return std::ranges::find(rows_, token, &Row::token)->logit; }

 private:
  struct Row {
    Token token;
    double logit;
  };

  void shape(std::span<const Token> history) {
    for (const auto& [token, bias] : o_.logit_bias) rows_[static_cast<size_t>(token)].logit += bias;
    if (o_.repeat_last_n >= 0 && history.size() > static_cast<size_t>(o_.repeat_last_n)) {
      history = history.last(static_cast<size_t>(o_.repeat_last_n));
    }
    std::map<Token, int> counts;
    for (const Token token : history) ++counts[token];
    for (const auto& [token, n] : counts) {
      double& logit = rows_[static_cast<size_t>(token)].logit;
      logit = logit > 0 ? logit / o_.repeat_penalty : logit * o_.repeat_penalty;
      logit -= n * static_cast<double>(o_.frequency_penalty) + o_.presence_penalty;
    }
  }
  template <class Less>
  void by(Less less) {
    std::stable_sort(rows_.begin(), rows_.end(), less);
  }
  void cut(size_t n) { rows_.resize(std::min(n, rows_.size())); }
  std::vector<double> softmax(double temperature) const {
    double max = -kInfinity;
    for (const Row& row : rows_) max = std::max(max, row.logit);
    std::vector<double> p;
    for (const Row& row : rows_) p.push_back(std::exp((row.logit - max) / temperature));
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= sum;
    return p;
  }
  void typical() {
    const std::vector<double> p = softmax(1);
    double entropy = 0;
    for (const double value : p) entropy -= value > 0 ? value * std::log(value) : 0;
    std::vector<size_t> order(p.size());
    std::iota(order.begin(), order.end(), 0u);
    const auto shift = [&](size_t i) { return std::fabs(-std::log(p[i]) - entropy); };
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return shift(a) < shift(b); });
    std::vector<Row> kept;
    double mass = 0;
    for (const size_t i : order) {
      kept.push_back(rows_[i]);
      mass += p[i];
      if (mass > o_.typical_p && kept.size() >= static_cast<size_t>(o_.min_keep)) break;
    }
    rows_ = kept;
  }
  void top_p() {
    const std::vector<double> p = softmax(1);
    double mass = 0;
    size_t n = 0;
    while (n < p.size()) {
      mass += p[n++];
      if (mass >= o_.top_p && n >= static_cast<size_t>(o_.min_keep)) break;
    }
    cut(n);
  }
  void min_p() {
    const std::vector<double> p = softmax(1);
    size_t n = 0;
    while (n < p.size() && p[n] >= o_.min_p * p[0]) ++n;
    cut(std::max(n, static_cast<size_t>(o_.min_keep)));
  }

  SamplingOptions o_;
  std::vector<Row> rows_;
};

// What the stages leave, as probabilities.
std::map<Token, double> staged(const SamplingOptions& options, std::span<const float> logits,
                               std::span<const Token> history) {
  TokenHistory seen(options.repeat_last_n);
  for (const Token token : history) seen.push(token);
  Candidates c;
  c.assign(logits);
  for (const SamplingStage& stage : sampling_stages()) {
    if (stage.enabled(options)) stage.apply(options, seen, c);
  }
  const float max = c.max_logit();
  const double total = c.total_weight(max);
  std::map<Token, double> out;
  for (const Candidate& item : c.items) out[item.token] = c.weight(item, max) / total;
  return out;
}

void expect_same(const std::map<Token, double>& found, const std::map<Token, double>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [token, p] : expected) {
    ASSERT_TRUE(found.contains(token)) << "token " << token;
    // 2^-28 of exp_weight, and the rounding of shaped logits to float (2^-24 of at most 16).
    ASSERT_NEAR(found.at(token), p, 4e-6 * p) << "token " << token;
  }
}

SamplingOptions random_options(Random& random) {
  const auto pick = [&](std::initializer_list<float> values) {
    return values.begin()[random.bits() % values.size()];
  };
  SamplingOptions o;
  o.temperature = pick({0.3f, 0.8f, 1.0f, 1.7f});
  o.top_k = static_cast<int>(pick({0, 1, 2, 7, 40, 5000}));
  o.top_p = pick({1, 0.95f, 0.5f, 0.1f, 0});
  o.min_p = pick({0, 0.05f, 0.3f, 1});
  o.typical_p = pick({1, 1, 0.9f, 0.4f, 0});
  o.repeat_penalty = pick({1, 1.3f, 0.8f});
  o.repeat_last_n = static_cast<int>(pick({-1, 0, 3, 64}));
  o.presence_penalty = pick({0, 0.5f, -0.25f});
  o.frequency_penalty = pick({0, 0.75f, -0.125f});
  o.min_keep = static_cast<int>(pick({1, 1, 1, 3}));
  if (random.bits() % 3 == 0) o.logit_bias = {{0, 3.5f}, {2, -kInfinity}, {1, -2.0f}};
  return o;
}

TEST(Sampler, StagesMatchTheirDefinitions) {
  Random random(11);
  for (int round = 0; round < 3000; ++round) {
    const size_t vocab = round % 3 == 0 ? 5 : round % 3 == 1 ? 64 : 700;
    const SamplingOptions options = random_options(random);
    const std::vector<float> logits = random_logits(vocab, static_cast<uint64_t>(round));
    std::vector<Token> history;
    for (int i = 0; i < round % 80; ++i) history.push_back(static_cast<Token>(random.bits() % 5));
    SCOPED_TRACE(message("round ", round));
    expect_same(staged(options, logits, history),
                Reference(options, logits, history).probabilities());
    if (HasFatalFailure()) return;
  }
}

TEST(Sampler, DrawsFollowTheDistribution) {
  Random random(12);
  for (int round = 0; round < 20; ++round) {
    SamplingOptions options = random_options(random);
    options.seed = static_cast<uint64_t>(round);
    const std::vector<float> logits = random_logits(24, static_cast<uint64_t>(round), 4);
    const auto expected = Reference(options, logits, {}).probabilities();
    Sampler sampler(options);
    std::map<Token, int> counts;
    constexpr int kDraws = 20000;
    for (int i = 0; i < kDraws; ++i) ++counts[sampler.sample(logits).token];
    double chi2 = 0;
    int degrees = -1;
    for (const auto& [token, p] : expected) {
      if (p * kDraws < 5) continue;  // too rare for the statistic
      chi2 += std::pow(counts[token] - p * kDraws, 2) / (p * kDraws);
      ++degrees;
    }
    for (const auto& [token, n] : counts) EXPECT_TRUE(n == 0 || expected.contains(token)) << token;
    // Five deviations above the mean of chi-square; the seeds are fixed, so this cannot flicker.
    EXPECT_LE(chi2, degrees + 5 * std::sqrt(2.0 * std::max(degrees, 1))) << "round " << round;
  }
}

// Computed by a separate program (Philox, NumPy float32 logits, float64 probabilities by the
// library's exp): the same draws on every machine, compiler and thread.
TEST(Sampler, GoldenDraws) {
  const std::vector<float> logits = random_logits(1000, 5);
  SamplingOptions options;
  options.seed = 42;
  options.repeat_penalty = 1.1f;
  options.temperature = 1.5f;
  Sampler sampler(options);
  std::vector<Token> tokens;
  for (int i = 0; i < 24; ++i) {
    const Token token = sampler.sample(logits).token;
    sampler.accept(token);
    tokens.push_back(token);
  }
  EXPECT_EQ(tokens,
            (std::vector<Token>{44,  783, 304, 384, 720, 750, 342, 276, 974, 63,  377, 233,
                                953, 123, 153, 821, 966, 392, 783, 793, 783, 884, 114, 783}));

  options = plain();
  options.typical_p = 0.7f;
  options.seed = 0xfedcba9876543210;
  sampler = Sampler(options);
  tokens.clear();
  for (int i = 0; i < 24; ++i) tokens.push_back(sampler.sample(logits).token);
  EXPECT_EQ(tokens,
            (std::vector<Token>{830, 830, 506, 783, 759, 293, 990, 927, 301, 301, 233, 726,
                                959, 44,  506, 646, 330, 112, 240, 821, 959, 44,  111, 869}));
  EXPECT_EQ(sampler.sample(logits).logprob, -0x1.1652c4p+2f);
}

TEST(Sampler, LogprobIsOfTheUnmodifiedSoftmax) {
  const std::vector<float> logits = random_logits(5000, 6, 30);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  SamplingOptions options;
  options.temperature = 3;
  options.logit_bias = {{17, 40.0f}};
  Sampler sampler(options);
  for (int i = 0; i < 50; ++i) {
    const Sampled drawn = sampler.sample(logits);
    const double exact = logits[static_cast<size_t>(drawn.token)] - std::log(sum);
    ASSERT_NEAR(drawn.logprob, exact, 1e-6 * std::fabs(exact));
  }
  SamplingOptions biased = greedy();
  biased.logit_bias = options.logit_bias;
  const Sampled best = Sampler(biased).sample(logits);
  EXPECT_EQ(best.token, 17);
  EXPECT_NEAR(best.logprob, logits[17] - std::log(sum), 1e-5);
  biased.logprobs = false;
  EXPECT_EQ(Sampler(biased).sample(logits).token, 17);
  EXPECT_TRUE(std::isnan(Sampler(biased).sample(logits).logprob));
}

TEST(Sampler, GreedyTakesTheLowestOfEqualIdsAndNoRandomness) {
  std::vector<float> logits = random_logits(300, 7);
  logits[200] = logits[41] = logits[299] = 50;
  Sampler sampler(greedy());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(sampler.sample(logits).token, 41);

  SamplingOptions negative = greedy();
  negative.temperature = -1;
  EXPECT_EQ(Sampler(negative).sample(logits).token, 41);

  // Narrowing stages cannot change it, shaping ones can.
  SamplingOptions odd = greedy();
  odd.typical_p = 0.01f;
  odd.top_k = 1;
  EXPECT_EQ(Sampler(odd).sample(logits).token, 41);
  odd.logit_bias = {{41, -kInfinity}};
  EXPECT_EQ(Sampler(odd).sample(logits).token, 200);
  odd.repeat_penalty = 2;
  Sampler repeated(odd);
  repeated.accept(200);
  EXPECT_EQ(repeated.sample(logits).token, 299);
}

// llama.cpp: positive logits are divided, others multiplied; then count * frequency + presence.
TEST(Sampler, PenaltyFormulas) {
  SamplingOptions options = plain();
  options.repeat_penalty = 2;
  options.presence_penalty = 0.5f;
  options.frequency_penalty = 0.25f;
  options.repeat_last_n = 4;
  TokenHistory history(options.repeat_last_n);
  for (const Token token : {3, 3, 0, 1, 1, 0}) history.push(token);  // the window is 0 1 1 0
  Candidates c;
  c.assign(std::vector<float>{4, -4, 4, 4});
  sampling_stages()[1].apply(options, history, c);
  EXPECT_EQ(sampling_stages()[1].name, "penalties");
  EXPECT_EQ(c.items[0].logit, 4.0f / 2 - 2 * 0.25f - 0.5f);
  EXPECT_EQ(c.items[1].logit, -4.0f * 2 - 2 * 0.25f - 0.5f);
  EXPECT_EQ(c.items[2].logit, 4.0f);
  EXPECT_EQ(c.items[3].logit, 4.0f);  // has left the window
}

TEST(Sampler, HistoryCountsItsWindow) {
  Random random(13);
  for (const int capacity : {-1, 0, 1, 2, 17, 2000}) {
    TokenHistory history(capacity);
    std::vector<Token> all;
    for (int i = 0; i < 3000; ++i) {
      all.push_back(static_cast<Token>(random.bits() % 9) - 2);
      history.push(all.back());
      if (i % 97 != 0) continue;
      const size_t n = capacity < 0 ? all.size() : std::min<size_t>(all.size(), capacity);
      std::map<Token, int> expected;
      for (size_t k = all.size() - n; k < all.size(); ++k) ++expected[all[k]];
      ASSERT_EQ(history.counts().size(), expected.size());
      auto at = expected.begin();
      for (const TokenHistory::Count& count : history.counts()) {
        ASSERT_EQ(count.token, at->first);
        ASSERT_EQ(count.n, at->second);
        ++at;
      }
    }
    history.clear();
    EXPECT_TRUE(history.counts().empty());
  }
}

TEST(Sampler, ExtremeLogitsStayDefined) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const std::vector<float> logits = {kMax, -kMax, -kInfinity, kMax, 0};
  SamplingOptions options = plain();
  options.repeat_penalty = 1e-30f;
  options.presence_penalty = -kMax;
  options.logit_bias = {{0, kMax}, {1, -kMax}};
  for (const float temperature : {1e-45f, 1.0f, kMax}) {
    for (const float typical_p : {0.0f, 0.5f, 1.0f}) {
      options.temperature = temperature;
      options.typical_p = typical_p;
      Sampler sampler(options);
      for (Token token = 0; token < 5; ++token) sampler.accept(token);
      sampler.accept(1 << 30);  // not of this vocabulary: nothing to penalize
      sampler.accept(-1);
      for (int i = 0; i < 20; ++i) EXPECT_NE(sampler.sample(logits).token, 2);
    }
  }
}

TEST(Sampler, ImpossibleTokensNeverCome) {
  std::vector<float> logits(100, -kInfinity);
  logits[63] = -12;
  for (const int top_k : {0, 40, 1}) {
    SamplingOptions options;
    options.top_k = top_k;
    options.typical_p = 0.9f;
    options.min_keep = 10;
    Sampler sampler(options);
    for (int i = 0; i < 100; ++i) ASSERT_EQ(sampler.sample(logits).token, 63);
    EXPECT_EQ(sampler.sample(logits).logprob, 0.0f);
  }
}

TEST(Sampler, CopiesContinueAlikeAndResetStartsAgain) {
  const std::vector<float> logits = random_logits(500, 8, 3);
  SamplingOptions options = plain();
  options.frequency_penalty = 1;
  options.seed = 3;
  Sampler sampler(options);
  const auto run = [&](Sampler& s, int n) {
    std::vector<Token> tokens;
    for (int i = 0; i < n; ++i) {
      tokens.push_back(s.sample(logits).token);
      s.accept(tokens.back());
    }
    return tokens;
  };
  const std::vector<Token> head = run(sampler, 30);
  Sampler copy = sampler;
  const std::vector<Token> tail = run(sampler, 30);
  EXPECT_EQ(run(copy, 30), tail);
  sampler.reset();
  EXPECT_EQ(run(sampler, 30), head);
  EXPECT_NE(head, tail);
  options.seed = 4;
  Sampler other(options);
  EXPECT_NE(run(other, 30), head);
}

std::string error_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Sampler, RefusesBadRows) {
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingOptions options;
    options.temperature = temperature;
    Sampler sampler(options);
    const auto sample = [&](std::vector<float> row) {
      return error_of([&] { sampler.sample(row); });
    };
    EXPECT_EQ(sample({}), "logits: expected one per token of the vocabulary, found none");
    EXPECT_EQ(sample({1, kNan}),
              "logits: expected finite numbers or -infinity, found NaN at token 1");
    EXPECT_EQ(sample({kInfinity}),
              "logits: expected finite numbers or -infinity, found +infinity at token 0");
    EXPECT_EQ(sample({-kInfinity, -kInfinity}),
              "logits: expected a possible token, found all 2 at -infinity");
    EXPECT_EQ(sample({0, 1}), "no error");
  }
  SamplingOptions options;
  options.logit_bias = {{1, -kInfinity}};
  EXPECT_EQ(error_of([&] { Sampler(options).sample(std::vector<float>{-kInfinity, 1}); }),
            "logits: expected a possible token, found all 2 at -infinity after logit_bias");
  EXPECT_EQ(error_of([&] { Sampler(options).sample(std::vector<float>{1}); }),
            "logit_bias: expected tokens below 1, found 1");
}

TEST(Sampler, RefusesBadOptions) {
  const auto refused = [](auto member, auto value) {
    SamplingOptions options;
    options.*member = value;
    EXPECT_THROW(Sampler{options}, ConfigError);
    return error_of([&] { options.validate(10); });
  };
  using O = SamplingOptions;
  EXPECT_EQ(refused(&O::temperature, kNan), "temperature: expected a finite number, found nan");
  EXPECT_EQ(refused(&O::temperature, kInfinity),
            "temperature: expected a finite number, found inf");
  for (const auto& [member, name] : {std::pair{&O::top_p, "top_p"}, std::pair{&O::min_p, "min_p"},
                                     std::pair{&O::typical_p, "typical_p"}}) {
    const std::string expected = std::string(name) + ": expected a number from 0 to 1, found ";
    EXPECT_EQ(refused(member, kNan), expected + "nan");
    EXPECT_EQ(refused(member, 1.5f), expected + "1.5");
    EXPECT_EQ(refused(member, -0.5f), expected + "-0.5");
  }
  EXPECT_EQ(refused(&O::repeat_penalty, 0.0f),
            "repeat_penalty: expected a finite number above 0, found 0");
  for (const float bad : {kNan, kInfinity, -1.0f}) {
    EXPECT_NE(refused(&O::repeat_penalty, bad), "no error");
  }
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    EXPECT_NE(refused(&O::presence_penalty, bad), "no error");
    EXPECT_NE(refused(&O::frequency_penalty, bad), "no error");
  }
  EXPECT_EQ(refused(&O::repeat_last_n, -2),
            "repeat_last_n: expected -1 (all tokens), 0 (none) or a count, found -2");
  EXPECT_EQ(refused(&O::min_keep, 0), "min_keep: expected at least 1, found 0");
  using Bias = std::vector<std::pair<Token, float>>;
  EXPECT_EQ(refused(&O::logit_bias, Bias{{-1, 0.0f}}),
            "logit_bias: expected a token of at least 0, found -1");
  EXPECT_EQ(refused(&O::logit_bias, Bias{{3, kInfinity}}),
            "logit_bias: expected a finite number or -infinity for token 3, found inf");
  EXPECT_EQ(refused(&O::logit_bias, Bias{{3, kNan}}),
            "logit_bias: expected a finite number or -infinity for token 3, found nan");
}

TEST(Sampler, ChecksBiasAgainstTheVocabulary) {
  SamplingOptions options;
  options.logit_bias = {{10, 1.0f}};
  EXPECT_NO_THROW(options.validate());
  EXPECT_NO_THROW(options.validate(11));
  EXPECT_EQ(error_of([&] { options.validate(10); }),
            "logit_bias: expected tokens below 10, found 10");
}

}  // namespace
}  // namespace kve
