#include "engine/forward_batch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>

#include "base/cpu_features.h"
#include "engine/tiny_model.h"

namespace kve::test {
namespace {

constexpr const char* kCaches[] = {"f16", "f32", "q8_0", "int4:group=32,tail=64",
                                   "h2o_bench:keep=0.3"};

class ForwardBatchTest : public ::testing::Test {
 protected:
  std::shared_ptr<Model> load(const TinyModel& tiny = {.type = WeightType::q8_0},
                              const std::string& isa = {}) {
    return load_tiny(folder_, tiny, 2, isa);
  }
  static SessionOptions options(std::string_view cache, bool exact, int n_batch = 256) {
    SessionOptions o;
    o.cache = CacheSpec::parse(cache);
    o.exact = exact;
    o.n_batch = n_batch;
    return o;
  }
  static std::vector<float> row(const Logits& logits, int64_t r) {
    const auto first = logits.values.begin() + r * logits.cols;
    return {first, first + logits.cols};
  }
  TemporaryFolder folder_;
};

// Prompts shorter and longer than a chunk, then a token or two of each: passes of at most 8 rows,
// and alone as well as together of more, take the same sums (see BatchGeneration).
TEST_F(ForwardBatchTest, EqualsTheSameTokensReadAloneInExactMode) {
  const auto model = load();
  const int lengths[] = {12, 25, 70, 33, 64};
  for (const char* cache : kCaches) {
    std::deque<Session> together, alone;
    std::vector<std::vector<Token>> prompts;
    std::vector<BatchInput> inputs;
    for (const int n : lengths) {
      prompts.push_back(random_tokens(n, static_cast<uint32_t>(n)));
      together.push_back(model->session(options(cache, true, 32)));
      alone.push_back(model->session(options(cache, true, 32)));
    }
    for (size_t i = 0; i < prompts.size(); ++i) {
      inputs.push_back({&together[i], prompts[i], i % 2 == 1});
    }
    for (int step = 0; step < 70; ++step) {  // the tail of int4 is sealed on the way
      const auto logits = forward_batch(inputs);
      ASSERT_EQ(logits.size(), inputs.size());
      for (size_t i = 0; i < inputs.size(); ++i) {
        const auto expected = alone[i].forward(inputs[i].tokens, inputs[i].all_logits);
        ASSERT_EQ(logits[i]->values, expected->values) << cache << " step " << step << " of " << i;
        ASSERT_EQ(row(*together[i].last_logits(), 0), row(*alone[i].last_logits(), 0));
        ASSERT_EQ(together[i].n_tokens(), alone[i].n_tokens());
        prompts[i] = random_tokens(1 + static_cast<int>(i) % 2, static_cast<uint32_t>(step));
        inputs[i].tokens = prompts[i];
      }
    }
    EXPECT_EQ(together[2].cache().save(), alone[2].cache().save());
  }
}

// int8 activations: kernels may differ in rounding for more rows than kFewRows, no more.
// Few inputs and many are both int8 here.
TEST_F(ForwardBatchTest, IsCloseToTheSameTokensReadAloneInFastMode) {
  const auto model = load({.type = WeightType::q8_0}, cpu_features().amx ? "avx512" : "");
  std::deque<Session> together, alone;
  for (int i = 0; i < 20; ++i) {
    together.push_back(model->session(options("f16", false)));
    alone.push_back(model->session(options("f16", false)));
  }
  for (int step = 0; step < 4; ++step) {
    std::vector<std::vector<Token>> tokens;
    std::vector<BatchInput> inputs;
    for (uint32_t i = 0; i < 20; ++i) tokens.push_back(random_tokens(step == 0 ? 9 : 1, i));
    for (size_t i = 0; i < 20; ++i) inputs.push_back({&together[i], tokens[i]});
    const auto logits = forward_batch(inputs);
    for (size_t i = 0; i < 20; ++i) {
      const auto expected = alone[i].forward(tokens[i]);
      for (size_t k = 0; k < expected->values.size(); ++k) {
        // Sums of f32 partial results of order 1 in another order; one code of an activation (a
        // part in 127 of its group's largest) may then round the other way.
        ASSERT_NEAR(logits[i]->values[k], expected->values[k], 0.15) << step << ' ' << i;
      }
    }
  }
}

// The tile unit multiplies many inputs in bf16: read together, tokens are closer to exact ones than
// alone, in int8.
TEST_F(ForwardBatchTest, LosesLessOfManyInputsThanOfFewWithTheTileUnit) {
  if (!cpu_features().amx) GTEST_SKIP() << "no tile unit";
  const auto model = load({.type = WeightType::q8_0}, "amx");
  std::deque<Session> together, alone, exact;
  std::vector<std::vector<Token>> tokens;
  std::vector<BatchInput> inputs;
  for (uint32_t i = 0; i < 20; ++i) {
    together.push_back(model->session(options("f16", false)));
    alone.push_back(model->session(options("f16", false)));
    exact.push_back(model->session(options("f16", true)));
    tokens.push_back(random_tokens(9, i));
  }
  for (size_t i = 0; i < 20; ++i) inputs.push_back({&together[i], tokens[i]});
  const auto logits = forward_batch(inputs);
  double of_many = 0;
  double of_few = 0;
  for (size_t i = 0; i < 20; ++i) {
    const auto few = alone[i].forward(tokens[i]);
    const auto expected = exact[i].forward(tokens[i]);
    for (size_t k = 0; k < expected->values.size(); ++k) {
      of_many += std::pow(logits[i]->values[k] - expected->values[k], 2);
      of_few += std::pow(few->values[k] - expected->values[k], 2);
    }
  }
  EXPECT_LT(of_many, of_few / 2);
}

TEST_F(ForwardBatchTest, WindowsAndOtherCachesMix) {
  const auto model = load({.arch = "gemma3", .n_layers = 7, .n_kv_heads = 1, .window = 16});
  std::deque<Session> together, alone;
  std::vector<BatchInput> inputs;
  std::vector<std::vector<Token>> tokens;
  for (const char* cache : kCaches) {
    together.push_back(model->session(options(cache, true)));
    alone.push_back(model->session(options(cache, true)));
    tokens.push_back(random_tokens(50 + static_cast<int>(tokens.size()), 1));
  }
  for (size_t i = 0; i < tokens.size(); ++i) inputs.push_back({&together[i], tokens[i], true});
  for (int step = 0; step < 3; ++step) {
    const auto logits = forward_batch(inputs);
    for (size_t i = 0; i < tokens.size(); ++i) {
      ASSERT_EQ(logits[i]->values, alone[i].forward(tokens[i], true)->values);
    }
  }
}

TEST_F(ForwardBatchTest, ForksScoreContinuations) {
  const auto model = load();
  Session prompt = model->session(options("int4:group=32,tail=64", true));
  prompt.forward(random_tokens(100, 1));
  std::deque<Session> forks;
  std::vector<std::vector<Token>> tokens;
  for (uint32_t i = 0; i < 4; ++i) {
    forks.push_back(prompt.fork());
    tokens.push_back(random_tokens(10 + static_cast<int>(i), i));
  }
  std::vector<BatchInput> inputs;
  for (size_t i = 0; i < 4; ++i) inputs.push_back({&forks[i], tokens[i], true});
  const auto logits = forward_batch(inputs);
  for (size_t i = 0; i < 4; ++i) {
    Session alone = prompt.fork();
    EXPECT_EQ(logits[i]->values, alone.forward(tokens[i], true)->values);
  }
  EXPECT_EQ(prompt.n_tokens(), 100);
}

TEST_F(ForwardBatchTest, RefusesBeforeReadingAnything) {
  const auto model = load();
  Session a = model->session(options("f16", true));
  Session b = model->session(options("f16", false));
  SessionOptions small = options("f16", true);
  small.n_ctx = 4;
  Session c = model->session(small);
  const TemporaryFolder folder;
  const auto other = load_tiny(folder, {.seed = 2});
  Session d = other->session(options("f16", true));
  const std::vector<Token> tokens = random_tokens(5, 1), unknown = {1 << 20};
  const auto refused = [&](std::vector<BatchInput> inputs) { forward_batch(inputs); };
  EXPECT_THROW(refused({}), ConfigError);
  EXPECT_THROW(refused({{&a, tokens}, {&a, tokens}}), ConfigError);
  EXPECT_THROW(refused({{&a, tokens}, {&b, tokens}}), ConfigError);
  EXPECT_THROW(refused({{&a, tokens}, {&d, tokens}}), ConfigError);
  EXPECT_THROW(refused({{&a, tokens}, {&c, tokens}}), CapacityError);
  EXPECT_THROW(refused({{&a, tokens}, {&c, {}}}), ConfigError);
  EXPECT_THROW(refused({{&a, tokens}, {&c, unknown}}), ConfigError);
  for (const Session* session : {&a, &b, &c, &d}) EXPECT_EQ(session->n_tokens(), 0);
}

TEST_F(ForwardBatchTest, AFailedPassChangesNoSession) {
  const auto model = load({.broken = 7});
  Session a = model->session(options("q8_0", true));
  Session b = model->session(options("int4:group=32,tail=64", true));
  std::vector<Token> tokens = {10, 11, 12}, broken = {10, 7};
  const BatchInput good[] = {{&a, tokens}, {&b, tokens}};
  forward_batch(good);
  const BatchInput bad[] = {{&a, tokens}, {&b, broken}};
  EXPECT_THROW(forward_batch(bad), Error);
  for (Session* session : {&a, &b}) {
    EXPECT_EQ(session->n_tokens(), 3);
    EXPECT_EQ(session->cache().n_tokens(), 3);
    EXPECT_NE(session->last_logits(), nullptr);
  }
  forward_batch(good);
  EXPECT_EQ(a.n_tokens(), 6);
}

TEST_F(ForwardBatchTest, CancellingKeepsFinishedChunks) {
  const auto model = load();
  Session a = model->session(options("f16", true, 16));
  Session b = model->session(options("f16", true, 16));
  const std::vector<Token> tokens = random_tokens(40, 1);
  const BatchInput inputs[] = {{&a, tokens}, {&b, tokens}};
  EXPECT_THROW(forward_batch(inputs, [](int64_t done, int64_t) { return done < 32; }),
               CancelledError);
  EXPECT_EQ(a.n_tokens() + b.n_tokens(), 32);
  EXPECT_EQ(a.last_logits(), nullptr);
  EXPECT_EQ(a.cache().n_tokens(), a.n_tokens());
}

}  // namespace
}  // namespace kve::test
