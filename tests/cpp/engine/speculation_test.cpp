// Generation with guesses: the same text as without, whatever is guessed.
#include <gtest/gtest.h>

#include "engine/generation.h"
#include "engine/tiny_model.h"

namespace kve::test {
namespace {

enum class Draft { lookup, same_model, other_model };

struct Result {
  std::string text;
  std::vector<Token> tokens;
  std::vector<float> logprobs;
  std::string reason;
  std::vector<Token> held;  // by the session
  std::vector<std::byte> cache;
  bool operator==(const Result&) const = default;
};

class SpeculationTest : public ::testing::Test {
 protected:
  SpeculationTest()
      : model_(load_tiny(folder_, {.type = WeightType::q8_0}, 2)),
        other_(load_tiny(other_folder_, {.n_layers = 1, .seed = 2})) {}

  static GenerateOptions options(int max_tokens, float temperature = 0) {
    GenerateOptions o;
    o.max_tokens = max_tokens;
    o.sampling.temperature = temperature;
    o.sampling.top_k = 5;
    o.ignore_eos = true;
    return o;
  }
  GenerateOptions with(GenerateOptions o, Draft draft, int most = 7) {
    o.draft.max_tokens = most;
    if (draft != Draft::lookup) {
      o.draft.session =
          std::make_shared<Session>((draft == Draft::same_model ? model_ : other_)->session());
    }
    return o;
  }
  Session session(std::string_view cache = "f16", int n_ctx = 0, bool exact = true) {
    SessionOptions o;
    o.cache = CacheSpec::parse(cache);
    o.exact = exact;
    o.n_ctx = n_ctx;
    return model_->session(o);
  }
  // A text that quotes itself.
  static std::vector<Token> prompt() {
    std::vector<Token> tokens = random_tokens(30, 1);
    for (int i = 0; i < 30; ++i) tokens.push_back(tokens[static_cast<size_t>(i)]);
    return tokens;
  }
  Result run(Session session, const GenerateOptions& o, int stop_after = -1) {
    Generation generation(session, prompt(), o);
    Result result;
    while (stop_after-- != 0) {
      const auto piece = generation.next();
      if (!piece) break;
      result.text += piece->text;
      result.logprobs.push_back(piece->logprob);
      if (piece->token != kNoToken) result.tokens.push_back(piece->token);
    }
    drafted_ = generation.drafted_tokens();
    accepted_ = generation.accepted_tokens();
    result.reason = generation.finish_reason();
    result.held.assign(session.tokens().begin(), session.tokens().end());
    if (generation.finish_reason().empty()) session.drop_ahead();
    EXPECT_TRUE(session.ahead().empty());
    result.cache = session.cache().save();
    return result;
  }

  TemporaryFolder folder_, other_folder_;
  std::shared_ptr<Model> model_, other_;
  int drafted_ = 0, accepted_ = 0;
};

// Tokens, probabilities and every bit of the cache; across the sealing of pages.
TEST_F(SpeculationTest, ChangesNothingInAnyCache) {
  for (const char* cache : {"f32", "f16", "bf16", "q8_0", "q4_0", "int8:group=32,tail=64",
                            "int4:group=32,tail=64", "k=int4:group=32,tail=7+v=q8_0"}) {
    for (const float temperature : {0.0f, 0.7f}) {
      GenerateOptions plain = options(150, temperature);
      plain.sampling.repeat_penalty = temperature > 0 ? 1.3f : 1.0f;
      const Result expected = run(session(cache), plain);
      ASSERT_EQ(expected.tokens.size(), 150u);
      for (const Draft draft : {Draft::lookup, Draft::same_model, Draft::other_model}) {
        for (const int most : {1, 4, 100}) {
          SCOPED_TRACE(::testing::Message() << cache << " at " << temperature << ", draft "
                                            << static_cast<int>(draft) << " of " << most);
          EXPECT_TRUE(run(session(cache), with(plain, draft, most)) == expected);
          EXPECT_LE(accepted_, drafted_);
        }
      }
    }
  }
}

// int8 activations, repacked weights.
TEST_F(SpeculationTest, ChangesNothingInFastMode) {
  for (const char* cache : {"f16", "q4_0", "int4:group=32,tail=64"}) {
    const Result expected = run(session(cache, 0, false), options(150));
    for (const Draft draft : {Draft::lookup, Draft::same_model, Draft::other_model}) {
      EXPECT_TRUE(run(session(cache, 0, false), with(options(150), draft)) == expected) << cache;
    }
  }
}

TEST_F(SpeculationTest, ChangesNothingWithWindows) {
  model_ = load_tiny(folder_, {.arch = "gemma3", .n_layers = 7, .n_kv_heads = 1, .window = 8});
  for (const char* cache : {"f16", "int4:group=32,tail=16"}) {
    const Result expected = run(session(cache), options(200));
    for (const Draft draft : {Draft::lookup, Draft::same_model}) {
      EXPECT_TRUE(run(session(cache), with(options(200), draft)) == expected) << cache;
      EXPECT_GT(drafted_, 0);
    }
  }
}

// The distribution is that of drawing without guesses, because each draw is the same draw.
TEST_F(SpeculationTest, DrawsTheSameTokensForEverySeed) {
  int accepted = 0, refused = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    GenerateOptions plain = options(20, 1.5f);
    plain.sampling.seed = seed;
    const Result expected = run(session(), plain);
    for (const Draft draft : {Draft::lookup, Draft::same_model, Draft::other_model}) {
      EXPECT_EQ(run(session(), with(plain, draft)).tokens, expected.tokens) << seed;
      accepted += accepted_;
      refused += drafted_ - accepted_;
    }
  }
  EXPECT_GT(accepted, 500);  // both happened
  EXPECT_GT(refused, 500);
}

TEST_F(SpeculationTest, AcceptsEverythingThatIsGuessedRight) {
  run(session(), with(options(100), Draft::same_model));
  // The draft session has int8 activations, the model's has not; nearly all agree nevertheless.
  EXPECT_GT(accepted_, 60);
  EXPECT_GT(accepted_, drafted_ * 3 / 4);
}

TEST_F(SpeculationTest, StopStringsCutTheSessionWhereTheyWould) {
  const Result whole = run(session(), options(100));
  int tested = 0;
  for (size_t at = 4; at < 90; at += 3) {
    const std::string piece = model_->tokenizer().piece(whole.tokens[at]);
    if (piece.empty() || (piece[0] & 0x80) != 0 || piece[0] == 0) continue;
    GenerateOptions plain = options(100);
    plain.stop = {piece};
    const Result expected = run(session(), plain);
    EXPECT_EQ(expected.reason, "stop");
    for (const Draft draft : {Draft::lookup, Draft::same_model}) {
      EXPECT_TRUE(run(session(), with(plain, draft)) == expected) << at;
    }
    ++tested;
  }
  EXPECT_GT(tested, 3);
}

TEST_F(SpeculationTest, EndTokensEndTheAnswer) {
  GenerateOptions plain = options(100, 1.0f);
  plain.ignore_eos = false;
  plain.sampling.logit_bias = {{model_->tokenizer().eos(), 4.0f}};
  for (uint64_t seed = 0; seed < 10; ++seed) {
    plain.sampling.seed = seed;
    const Result expected = run(session(), plain);
    EXPECT_TRUE(run(session(), with(plain, Draft::same_model)) == expected) << seed;
  }
}

TEST_F(SpeculationTest, EndsWhenTheContextIsFull) {
  for (const int room : {1, 2, 5, 9, 17}) {
    const int n_ctx = static_cast<int>(prompt().size()) + room;
    const Result expected = run(session("f16", n_ctx), options(-1));
    EXPECT_EQ(expected.held.size(), static_cast<size_t>(n_ctx));
    for (const Draft draft : {Draft::lookup, Draft::same_model}) {
      EXPECT_TRUE(run(session("f16", n_ctx), with(options(-1), draft)) == expected) << room;
    }
  }
}

TEST_F(SpeculationTest, ComputesNothingBeyondTheLastToken) {
  for (const int n : {0, 1, 2, 3}) {
    const Result expected = run(session(), options(n));
    EXPECT_TRUE(run(session(), with(options(n), Draft::same_model)) == expected) << n;
    EXPECT_LE(drafted_, std::max(0, n - 2));  // the first needs no pass, the last none after it
  }
}

// The session holds what was shown, not what has been computed beyond.
TEST_F(SpeculationTest, AbandonedAnswersLeaveTheSessionAsShown) {
  for (const int after : {1, 2, 7, 30}) {
    const Result expected = run(session("int4:group=32,tail=64"), options(60), after);
    for (const Draft draft : {Draft::lookup, Draft::same_model}) {
      EXPECT_TRUE(run(session("int4:group=32,tail=64"), with(options(60), draft), after) ==
                  expected)
          << after;
    }
  }
}

TEST_F(SpeculationTest, GoesOnWhenSomebodyDropsWhatIsAhead) {
  const Result expected = run(session(), options(60));
  Session again = session();
  Generation generation(again, prompt(), with(options(60), Draft::same_model));
  std::vector<Token> tokens;
  while (const auto piece = generation.next()) {
    if (piece->token != kNoToken) tokens.push_back(piece->token);
    if (tokens.size() % 3 == 0) again.drop_ahead();
  }
  EXPECT_EQ(tokens, expected.tokens);
}

TEST_F(SpeculationTest, CancellingTheSmallerModelsReadingCancels) {
  GenerateOptions o = with(options(10), Draft::other_model);
  Session main = session();
  int calls = 0;
  const auto progress = [&](int64_t, int64_t) { return ++calls < 2; };
  SessionOptions small;
  small.n_batch = 16;
  o.draft.session = std::make_shared<Session>(other_->session(small));
  EXPECT_THROW(Generation(main, prompt(), o, progress), CancelledError);
  EXPECT_EQ(main.n_tokens(), 60);
  EXPECT_LT(o.draft.session->n_tokens(), 60);
}

TEST_F(SpeculationTest, ConversationsGoOnWithTheSameDraftSession) {
  const GenerateOptions o = with(options(20), Draft::same_model);
  Session speculated = session(), plain = session();
  for (int turn = 0; turn < 3; ++turn) {
    const std::vector<Token> message = random_tokens(9, 20 + static_cast<uint32_t>(turn));
    Generation a(speculated, message, o), b(plain, message, options(20));
    while (const auto piece = a.next()) EXPECT_EQ(piece->token, b.next()->token);
  }
}

TEST_F(SpeculationTest, RefusesOtherVocabularies) {
  const TemporaryFolder a_folder, b_folder;
  const auto a = load_tiny(a_folder, {.extra_pieces = {"same", "this"}});
  const auto b = load_tiny(b_folder, {.extra_pieces = {"same", "that"}});
  const auto why = [&](const std::shared_ptr<Model>& target, const std::shared_ptr<Model>& draft) {
    GenerateOptions o = options(5);
    o.draft = {.max_tokens = 4, .session = std::make_shared<Session>(draft->session())};
    Session session = target->session();
    try {
      Generation(session, prompt(), o);
    } catch (const ConfigError& error) {
      EXPECT_EQ(session.n_tokens(), 0);
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(why(model_, a).find("286"), std::string::npos) << why(model_, a);
  EXPECT_NE(why(a, b).find("'that' instead of 'this' as token 287"), std::string::npos)
      << why(a, b);
  EXPECT_EQ(why(a, a), "");
}

TEST_F(SpeculationTest, ChecksItsOptions) {
  Session one = session();
  EXPECT_THROW(Generation(one, prompt(), with(options(5), Draft::lookup, -1)), ConfigError);
  BatchGeneration batch(model_);
  EXPECT_THROW(batch.add(one, prompt(), with(options(5), Draft::lookup)), ConfigError);
  EXPECT_EQ(one.n_tokens(), 0);
}

}  // namespace
}  // namespace kve::test
