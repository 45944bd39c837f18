#include "engine/generation.h"

#include <gtest/gtest.h>

#include "engine/tiny_model.h"

namespace kve::test {
namespace {

class GenerationTest : public ::testing::Test {
 protected:
  GenerationTest() : model_(load_tiny(folder_, {})) {}

  static GenerateOptions greedy(int max_tokens) {
    GenerateOptions options;
    options.max_tokens = max_tokens;
    options.sampling.temperature = 0;
    options.ignore_eos = true;
    return options;
  }
  std::vector<Token> run(Session& session, const GenerateOptions& options) {
    Generation generation(session, random_tokens(20, 1), options);
    std::vector<Token> tokens;
    text_.clear();
    while (const auto piece = generation.next()) {
      text_ += piece->text;
      if (piece->token != kNoToken) tokens.push_back(piece->token);
    }
    reason_ = generation.finish_reason();
    return tokens;
  }

  TemporaryFolder folder_;
  std::shared_ptr<Model> model_;
  std::string text_, reason_;
};

TEST_F(GenerationTest, GreedyTakesTheArgMaxOfEveryStep) {
  Session session = model_->session();
  const std::vector<Token> tokens = run(session, greedy(12));
  ASSERT_EQ(tokens.size(), 12u);
  EXPECT_EQ(reason_, "length");
  Session again = model_->session();
  again.forward(random_tokens(20, 1));
  for (const Token token : tokens) {
    const auto last = again.last_logits()->last();
    const auto best = std::max_element(last.begin(), last.end()) - last.begin();
    if (best == model_->tokenizer().eos()) break;  // banned by ignore_eos
    EXPECT_EQ(token, best);
    again.forward(std::vector<Token>{token});
  }
}

TEST_F(GenerationTest, SeedsRepeat) {
  GenerateOptions options = greedy(30);
  options.sampling.temperature = 1;
  options.sampling.seed = 42;
  Session a = model_->session(), b = model_->session(), c = model_->session();
  const std::vector<Token> first = run(a, options);
  EXPECT_EQ(run(b, options), first);
  options.sampling.seed = 43;
  EXPECT_NE(run(c, options), first);
}

TEST_F(GenerationTest, StopsAtStopStringsAndKeepsThemOut) {
  Session session = model_->session();
  run(session, greedy(40));
  ASSERT_GT(text_.size(), 8u);
  const std::string whole = text_;
  GenerateOptions options = greedy(40);
  // Whole characters out of the middle of the text.
  size_t begin = whole.size() / 2;
  while ((static_cast<unsigned char>(whole[begin]) & 0xc0) == 0x80) ++begin;
  size_t end = begin + 1;
  while (end < whole.size() && (static_cast<unsigned char>(whole[end]) & 0xc0) == 0x80) ++end;
  options.stop = {whole.substr(begin, end - begin)};
  Session again = model_->session();
  run(again, options);
  EXPECT_EQ(reason_, "stop");
  EXPECT_EQ(text_, whole.substr(0, whole.find(options.stop[0])));
}

TEST_F(GenerationTest, EndsWhenTheContextIsFull) {
  SessionOptions options;
  options.n_ctx = 25;
  Session session = model_->session(options);
  EXPECT_EQ(run(session, greedy(-1)).size(), 6u);  // the last one is never fed back
  EXPECT_EQ(reason_, "length");
  EXPECT_EQ(session.n_tokens(), 25);
}

TEST_F(GenerationTest, ContinuesFromTheLastLogitsWithoutAPrompt) {
  Session session = model_->session();
  EXPECT_THROW(Generation(session, {}, greedy(1)), ConfigError);
  session.forward(random_tokens(20, 1));
  Generation generation(session, {}, greedy(1));
  const auto piece = generation.next();
  ASSERT_TRUE(piece);
  Session other = model_->session();
  EXPECT_EQ(run(other, greedy(1)), std::vector<Token>{piece->token});
}

TEST_F(GenerationTest, RefusesBadOptions) {
  Session session = model_->session();
  GenerateOptions options = greedy(-2);
  EXPECT_THROW(Generation(session, random_tokens(3, 1), options), ConfigError);
  options = greedy(1);
  options.sampling.temperature = NAN;
  EXPECT_THROW(Generation(session, random_tokens(3, 1), options), ConfigError);
  EXPECT_EQ(session.n_tokens(), 0);
}

}  // namespace
}  // namespace kve::test
