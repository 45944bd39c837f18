// Session::look_ahead() and accept(): what they leave is what forward() leaves, bit for bit.
#include <gtest/gtest.h>

#include <random>

#include "engine/tiny_model.h"
#include "kernels/few_rows.h"

namespace kve::test {
namespace {

constexpr const char* kCaches[] = {"f32",
                                   "f16",
                                   "bf16",
                                   "q8_0",
                                   "q4_0",
                                   "flexgen4",
                                   "int8:group=32,tail=5",
                                   "int4:group=32,tail=64",
                                   "k=int4:group=32,tail=64+v=int8:group=32,tail=30"};

struct Tested {
  const char* name;
  TinyModel model;
  int n_prompt = 50;
};

class LookAhead : public ::testing::TestWithParam<Tested> {
 protected:
  LookAhead() : model_(load_tiny(folder_, GetParam().model, 2)) {}

  Session session(std::string_view cache, int n_ctx = 0, bool exact = true) {
    SessionOptions o;
    o.cache = CacheSpec::parse(cache);
    o.exact = exact;
    o.n_ctx = n_ctx;
    return model_->session(o);
  }
  void compare(const char* cache, bool exact);

  TemporaryFolder folder_;
  std::shared_ptr<Model> model_;
};

std::vector<float> row(const Logits& logits, int64_t r) {
  const auto first = logits.values.begin() + r * logits.cols;
  return {first, first + logits.cols};
}

// Random runs of which a random part is accepted, in one or several steps.
TEST_P(LookAhead, AcceptedTokensEqualTokensReadOneByOne) {
  for (const char* cache : kCaches) {
    SCOPED_TRACE(cache);
    compare(cache, true);
    compare(cache, false);
  }
}

void LookAhead::compare(const char* cache, bool exact) {
  Session speculated = session(cache, 0, exact), plain = session(cache, 0, exact);
  const std::vector<Token> prompt = random_tokens(GetParam().n_prompt, 1);
  speculated.forward(prompt);
  plain.forward(prompt);
  std::mt19937 random(5);
  while (plain.n_tokens() < GetParam().n_prompt + 180) {
    const int most = speculated.max_ahead();
    ASSERT_GE(most, 1);
    ASSERT_LE(most, kFewRows);
    const int n = 1 + static_cast<int>(random() % static_cast<unsigned>(most));
    const std::vector<Token> run = random_tokens(n, static_cast<uint32_t>(random()));
    const auto logits = speculated.look_ahead(run);
    ASSERT_EQ(logits->rows, n);
    const int accepted = static_cast<int>(random() % static_cast<unsigned>(n + 1));
    const int at_once = accepted > 2 ? 2 : 1;
    for (int i = 0; i < accepted;) {
      const int part = std::min(at_once, accepted - i);
      speculated.accept(part);
      for (const int end = i + part; i < end; ++i) {
        const auto expected = plain.forward({&run[static_cast<size_t>(i)], 1});
        ASSERT_EQ(row(*logits, i), expected->values) << "token " << plain.n_tokens();
      }
      ASSERT_EQ(row(*speculated.last_logits(), 0), row(*plain.last_logits(), 0));
      ASSERT_EQ(speculated.ahead().size(), static_cast<size_t>(n - i));
    }
    if (accepted == 0) {
      speculated.drop_ahead();
      ASSERT_TRUE(speculated.ahead().empty());
    }
    ASSERT_EQ(speculated.n_tokens(), plain.n_tokens());
    if (random() % 4 == 0) {  // rows that are ahead are no part of what is saved
      ASSERT_EQ(speculated.fork().cache().save(), plain.cache().save());
    }
  }
  speculated.drop_ahead();
  EXPECT_EQ(speculated.cache().save(), plain.cache().save());
  EXPECT_EQ(speculated.cache().stats().tokens_kept, plain.cache().stats().tokens_kept);
}

// Attention takes queries, heads and rows of the cache in blocks: borders of all of them are
// crossed.
INSTANTIATE_TEST_SUITE_P(
    Models, LookAhead,
    ::testing::Values(Tested{"llama", {.type = WeightType::q8_0}},
                      Tested{"four_bits", {.type = WeightType::q4_0}},
                      Tested{"grouped", {.n_heads = 9, .n_kv_heads = 3}, 170},
                      Tested{"multi_query", {.n_layers = 1, .n_heads = 16, .n_kv_heads = 1}, 450},
                      Tested{"window", {.window = 20}},
                      Tested{"long_window", {.n_layers = 1, .window = 300}, 500},
                      Tested{"gemma3",
                             {.arch = "gemma3", .n_layers = 7, .n_kv_heads = 1, .window = 16}}),
    [](const auto& tested) { return tested.param.name; });

class LookAheadChange : public LookAhead {};

TEST_P(LookAheadChange, EverythingElseForgetsWhatIsAhead) {
  Session a = session("int4:group=32,tail=64"), b = session("int4:group=32,tail=64");
  const std::vector<Token> prompt = random_tokens(100, 1), run = random_tokens(6, 2);
  const std::vector<Token> more = random_tokens(3, 3);
  a.forward(prompt);
  b.forward(prompt);
  const auto ahead = [&] {
    a.look_ahead(run);
    a.accept(2);
    b.forward(std::span(run).first(1));
    b.forward(std::span(run).subspan(1, 1));
  };
  ahead();
  EXPECT_EQ(a.forward(more)->values, b.forward(more)->values);
  ahead();
  a.look_ahead(run);  // again, from where it was accepted
  EXPECT_EQ(a.ahead().size(), 6u);
  a.drop_ahead();
  ahead();
  {
    const Session fork = a.fork();
    EXPECT_TRUE(fork.ahead().empty());
    EXPECT_EQ(a.ahead().size(), 4u);  // a fork does not change its original
    EXPECT_EQ(fork.cache().save(), b.cache().save());
  }
  a.save(folder_ / "session");
  EXPECT_EQ(model_->restore(folder_ / "session").n_tokens(), b.n_tokens());
  a.truncate(b.n_tokens());  // nothing to forget but what is ahead
  EXPECT_TRUE(a.ahead().empty());
  EXPECT_EQ(a.cache().save(), b.cache().save());
  ahead();
  a.truncate(101);
  b.truncate(101);
  EXPECT_EQ(a.forward(more)->values, b.forward(more)->values);
  const BatchInput input{&a, more};
  ahead();
  EXPECT_EQ(forward_batch({&input, 1})[0]->values, b.forward(more)->values);
  EXPECT_EQ(a.cache().stats().bytes, a.cache().memory().live());
}

TEST_P(LookAheadChange, ChecksItsTokens) {
  Session a = session("int4:group=32,tail=64", 100);
  EXPECT_THROW(a.accept(1), ConfigError);
  a.forward(random_tokens(96, 1));
  EXPECT_EQ(a.max_ahead(), 4);
  EXPECT_THROW(a.look_ahead(random_tokens(5, 1)), CapacityError);
  EXPECT_THROW(a.look_ahead({}), ConfigError);
  EXPECT_THROW(a.look_ahead(std::vector<Token>{-1}), ConfigError);
  a.look_ahead(random_tokens(4, 1));
  EXPECT_THROW(a.accept(0), ConfigError);
  EXPECT_THROW(a.accept(5), ConfigError);
  a.accept(4);
  EXPECT_EQ(a.max_ahead(), 0);
  EXPECT_EQ(a.n_tokens(), 100);

  Session b = session("int4:group=32,tail=64");
  b.forward(random_tokens(122, 1));  // 6 tokens until a page is sealed
  EXPECT_EQ(b.max_ahead(), 6);
  EXPECT_THROW(b.look_ahead(random_tokens(7, 1)), ConfigError);
  b.look_ahead(random_tokens(6, 1));
  b.accept(6);
  EXPECT_EQ(b.max_ahead(), kFewRows);
}

INSTANTIATE_TEST_SUITE_P(Models, LookAheadChange,
                         ::testing::Values(Tested{"llama", {.type = WeightType::q8_0}}),
                         [](const auto& tested) { return tested.param.name; });

TEST(LookAheadFailure, LeavesTheSessionAsItWas) {
  const TemporaryFolder folder;
  const auto model = load_tiny(folder, {.broken = 7});
  Session session = model->session();
  session.forward(std::vector<Token>{10, 11});
  EXPECT_THROW(session.look_ahead(std::vector<Token>{12, 7}), Error);
  EXPECT_TRUE(session.ahead().empty());
  EXPECT_EQ(session.n_tokens(), 2);
  EXPECT_EQ(session.cache().rows(0), 2);
  EXPECT_NE(session.last_logits(), nullptr);
}

}  // namespace
}  // namespace kve::test
