#include "engine/batch_generation.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "engine/generation.h"
#include "engine/tiny_model.h"

namespace kve::test {
namespace {

struct Result {
  std::string text;
  std::vector<Token> tokens;
  std::string reason;
  bool operator==(const Result&) const = default;
};

class BatchGenerationTest : public ::testing::Test {
 protected:
  BatchGenerationTest() : model_(load_tiny(folder_, {.type = WeightType::q8_0}, 2)) {}

  static GenerateOptions options(int max_tokens, float temperature = 0, uint64_t seed = 0) {
    GenerateOptions o;
    o.max_tokens = max_tokens;
    o.sampling.temperature = temperature;
    o.sampling.seed = seed;
    o.ignore_eos = true;
    return o;
  }
  Session& session(std::string_view cache = "f16", int n_ctx = 0, bool exact = true) {
    SessionOptions o;
    o.cache = CacheSpec::parse(cache);
    o.n_ctx = n_ctx;
    o.n_batch = 32;
    o.exact = exact;
    return sessions_.emplace_back(model_->session(o));
  }
  static Result alone(Session& session, std::span<const Token> prompt, const GenerateOptions& o) {
    Generation generation(session, prompt, o);
    Result result;
    while (const auto piece = generation.next()) take(result, *piece);
    result.reason = generation.finish_reason();
    return result;
  }
  static void take(Result& result, const Piece& piece) {
    result.text += piece.text;
    if (piece.token != kNoToken) result.tokens.push_back(piece.token);
  }
  static std::map<int, Result> run(BatchGeneration& batch) {
    std::map<int, Result> results;
    while (batch.active() > 0) {
      for (const auto& [id, piece] : batch.step()) take(results[id], piece);
    }
    for (auto& [id, result] : results) result.reason = batch.finish_reason(id);
    return results;
  }

  TemporaryFolder folder_;
  std::shared_ptr<Model> model_;
  std::deque<Session> sessions_;
};

// Every sequence has its own cache, sampling, length and stop strings.
TEST_F(BatchGenerationTest, AnswersAreThoseOfEachPromptAlone) {
  BatchGeneration batch(model_);
  std::vector<Result> expected;
  std::vector<int> n_held;
  int i = 0;
  for (const char* cache : {"f16", "q8_0", "int4:group=32,tail=64", "q4_0"}) {
    for (const float temperature : {0.0f, 1.0f}) {
      const std::vector<Token> prompt = random_tokens(3 + 17 * i, 1 + static_cast<uint32_t>(i));
      GenerateOptions o = options(100 - 9 * i, temperature, static_cast<uint64_t>(i));
      o.sampling.repeat_penalty = 1.2f;
      Session& single = session(cache);
      expected.push_back(alone(single, prompt, o));
      if (i % 3 == 0) {
        // Ends at a token's text that comes somewhere in the middle.
        o.stop = {model_->tokenizer().piece(expected.back().tokens[40])};
        if (o.stop[0].empty() || (o.stop[0][0] & 0x80) != 0) o.stop = {"a"};
        single.truncate(0);
        expected.back() = alone(single, prompt, o);
      }
      n_held.push_back(single.n_tokens());
      EXPECT_EQ(batch.add(session(cache), prompt, o), i++);
    }
  }
  std::map<int, Result> results = run(batch);
  for (int id = 0; id < i; ++id) {
    EXPECT_EQ(results[id], expected[static_cast<size_t>(id)]) << id;
    EXPECT_EQ(sessions_[static_cast<size_t>(2 * id + 1)].n_tokens(), n_held[id]) << id;
  }
  EXPECT_TRUE(batch.step().empty());
}

// int8 activations: eight rows of repacked weights are computed as each alone.
TEST_F(BatchGenerationTest, EightAnswersAreThoseOfEachPromptAloneInFastMode) {
  BatchGeneration batch(model_);
  std::vector<Result> expected;
  for (int i = 0; i < 8; ++i) {
    const std::vector<Token> prompt = random_tokens(20 + i, static_cast<uint32_t>(i));
    expected.push_back(alone(session("q8_0", 0, false), prompt, options(40)));
    batch.add(session("q8_0", 0, false), prompt, options(40));
  }
  std::map<int, Result> results = run(batch);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(results[i], expected[static_cast<size_t>(i)]) << i;
}

TEST_F(BatchGenerationTest, SequencesComeAndGoBetweenSteps) {
  const std::vector<Token> first = random_tokens(40, 1), second = random_tokens(100, 2);
  const Result expected_first = alone(session(), first, options(30));
  const Result expected_second = alone(session(), second, options(30));
  BatchGeneration batch(model_);
  Result found_first, found_second;
  batch.add(session(), first, options(30));
  const int gone = batch.add(session(), second, options(-1));
  int later = -1;
  for (int step = 0; batch.active() > 0; ++step) {
    if (step == 10) {
      batch.remove(gone);
      EXPECT_THROW(batch.finish_reason(gone), ConfigError);
      later = batch.add(session(), second, options(30));
      EXPECT_EQ(batch.active(), 2);
    }
    for (const auto& [id, piece] : batch.step()) {
      if (id == 0) take(found_first, piece);
      if (id == later) take(found_second, piece);
    }
  }
  EXPECT_EQ(found_first.tokens, expected_first.tokens);
  EXPECT_EQ(found_second.tokens, expected_second.tokens);
  EXPECT_EQ(batch.prompt_tokens(later), 100);
  EXPECT_EQ(batch.generated_tokens(later), 30);
}

TEST_F(BatchGenerationTest, AFullContextEndsOneSequenceOnly) {
  BatchGeneration batch(model_);
  batch.add(session("f16", 25), random_tokens(20, 1), options(-1));
  batch.add(session("f16", 60), random_tokens(20, 2), options(-1));
  std::map<int, Result> results = run(batch);
  EXPECT_EQ(results[0].tokens.size(), 6u);
  EXPECT_EQ(results[1].tokens.size(), 41u);
  EXPECT_EQ(results[0].reason, "length");
  EXPECT_EQ(sessions_[0].n_tokens(), 25);
}

TEST_F(BatchGenerationTest, AFailureEndsOneSequenceOnly) {
  const auto broken = load_tiny(folder_, {.broken = 7});
  SessionOptions o;
  o.exact = true;
  Session a = broken->session(o), b = broken->session(o), c = broken->session(o);
  Session single = broken->session(o);
  GenerateOptions never = options(12);
  never.sampling.logit_bias = {{7, -INFINITY}};
  const Result expected = alone(single, random_tokens(5, 1), never);
  BatchGeneration batch(broken);
  batch.add(a, random_tokens(5, 1), never);
  batch.add(b, std::vector<Token>{10, 7}, never);  // fails in the prompt
  GenerateOptions always = options(12);
  always.sampling.logit_bias = {{7, 1e6f}};
  batch.add(c, random_tokens(5, 3), always);  // fails when its first token is fed
  std::map<int, Result> results = run(batch);
  EXPECT_EQ(results[0], expected);
  EXPECT_EQ(batch.finish_reason(1), "error");
  EXPECT_NE(batch.error(1).find("layer 0"), std::string::npos) << batch.error(1);
  EXPECT_EQ(batch.finish_reason(2), "error");
  EXPECT_EQ(results[2].tokens, std::vector<Token>{7});
  EXPECT_EQ(batch.error(0), "");
  EXPECT_EQ(b.n_tokens(), 0);
  EXPECT_EQ(c.n_tokens(), 5);
}

TEST_F(BatchGenerationTest, GoesOnFromWhatSessionsHold) {
  Session& forked = session();
  forked.forward(random_tokens(50, 1));
  sessions_.push_back(forked.fork());
  sessions_.push_back(forked.fork());
  BatchGeneration batch(model_);
  batch.add(sessions_[1], {}, options(9));
  batch.add(sessions_[2], random_tokens(3, 5), options(9));
  std::map<int, Result> results = run(batch);
  EXPECT_EQ(results[0], alone(sessions_[0], {}, options(9)));
  sessions_[0].truncate(50);
  EXPECT_EQ(results[1], alone(sessions_[0], random_tokens(3, 5), options(9)));
}

TEST_F(BatchGenerationTest, ChecksWhatIsAdded) {
  BatchGeneration batch(model_);
  const std::vector<Token> prompt = random_tokens(5, 1);
  Session& a = session();
  EXPECT_THROW(batch.add(a, {}, options(1)), ConfigError);
  EXPECT_THROW(batch.add(a, prompt, options(-2)), ConfigError);
  EXPECT_THROW(batch.add(a, std::vector<Token>{-1}, options(1)), ConfigError);
  EXPECT_THROW(batch.add(session("f16", 4), prompt, options(1)), CapacityError);
  Session other_precision = model_->session();
  batch.add(a, prompt, options(1));
  EXPECT_THROW(batch.add(a, prompt, options(1)), ConfigError);
  EXPECT_THROW(batch.add(other_precision, prompt, options(1)), ConfigError);
  const TemporaryFolder folder;
  Session foreign = load_tiny(folder, {.seed = 2})->session();
  EXPECT_THROW(batch.add(foreign, prompt, options(1)), ConfigError);
  EXPECT_THROW(batch.remove(5), ConfigError);
  EXPECT_EQ(batch.active(), 1);
  EXPECT_EQ(run(batch)[0].tokens.size(), 1u);
  batch.add(a, prompt, options(0));  // it may be used again once its sequence has ended
  EXPECT_TRUE(run(batch).empty());
  EXPECT_EQ(batch.finish_reason(1), "length");
}

}  // namespace
}  // namespace kve::test
