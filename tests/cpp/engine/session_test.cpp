#include "engine/session.h"

#include <gtest/gtest.h>

#include "engine/reference_decoder.h"
#include "engine/tiny_model.h"

namespace kve::test {
namespace {

SessionOptions exact(std::string_view cache = "f32") {
  SessionOptions options;
  options.cache = CacheSpec::parse(cache);
  options.exact = true;
  return options;
}

std::vector<float> last_row(const Logits& logits) {
  const auto last = logits.last();
  return {last.begin(), last.end()};
}

struct Architecture {
  const char* name;
  TinyModel model;
};

class EveryArchitecture : public ::testing::TestWithParam<Architecture> {
 protected:
  TemporaryFolder folder_;
};

TEST_P(EveryArchitecture, EqualsTheReferenceInExactMode) {
  const auto model = load_tiny(folder_, GetParam().model, 2);
  const std::vector<Token> tokens = random_tokens(90, 7);
  const std::vector<Row> expected = ReferenceDecoder(*model).logits(tokens);
  SessionOptions options = exact();
  options.n_batch = 32;  // several chunks, the last one shorter
  Session session = model->session(options);
  const auto found = session.forward(tokens, true);
  ASSERT_EQ(found->rows, 90);
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (size_t i = 0; i < expected[t].size(); ++i) {
      // f32 rounding through two layers of sums of up to 128 products; logits are of order 1-10.
      ASSERT_NEAR(found->values[t * static_cast<size_t>(found->cols) + i], expected[t][i], 1e-4)
          << "token " << t << " logit " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, EveryArchitecture,
    ::testing::Values(
        Architecture{"llama", {}}, Architecture{"multi_head", {.n_heads = 2, .n_kv_heads = 2}},
        Architecture{"multi_query", {.n_heads = 4, .n_kv_heads = 1}},
        Architecture{"sliding_window", {.window = 20}},
        Architecture{"gemma3", {.arch = "gemma3", .n_layers = 7, .n_kv_heads = 1, .window = 16}},
        Architecture{"quantized", {.type = WeightType::q8_0}}),
    [](const auto& tested) { return tested.param.name; });

class SessionTest : public ::testing::Test {
 protected:
  std::shared_ptr<Model> load(int threads = 1, const TinyModel& tiny = {.type = WeightType::q8_0}) {
    return load_tiny(folder_, tiny, threads);
  }
  TemporaryFolder folder_;
};

TEST_F(SessionTest, ThreadsDoNotChangeAnyBit) {
  const std::vector<Token> tokens = random_tokens(300, 3);
  for (const bool is_exact : {false, true}) {
    SessionOptions options = exact("int4:group=32,tail=64");
    options.exact = is_exact;
    std::vector<float> expected;
    for (const int threads : {1, 2, 3, 8}) {
      Session session = load(threads)->session(options);
      session.forward(tokens);
      const auto logits = session.forward(std::vector<Token>{5});
      if (expected.empty()) expected = last_row(*logits);
      EXPECT_EQ(last_row(*logits), expected) << threads << " threads";
    }
  }
}

TEST_F(SessionTest, ForkAndTruncateContinueLikeTheOriginal) {
  for (const char* cache : {"f16", "q8_0", "int4:group=32,tail=64"}) {
    const auto model = load();
    Session session = model->session(exact(cache));
    session.forward(random_tokens(200, 1));
    Session fork = session.fork();
    const std::vector<Token> more = random_tokens(70, 2);
    const auto mine = session.forward(more);
    const auto theirs = fork.forward(more);
    EXPECT_EQ(last_row(*mine), last_row(*theirs)) << cache;
    // Going back a little (within the tail, or in pages coded row by row) loses nothing.
    session.truncate(260);
    fork.truncate(260);
    EXPECT_EQ(last_row(*session.forward(more)), last_row(*fork.forward(more))) << cache;
  }
}

TEST_F(SessionTest, TruncatedFloatCacheEqualsRecomputation) {
  const auto model = load();
  const std::vector<Token> tokens = random_tokens(150, 4);
  Session whole = model->session(exact());
  const auto expected = last_row(*whole.forward(tokens));
  Session session = model->session(exact());
  session.forward(std::span(tokens).first(120));
  session.forward(random_tokens(50, 5));
  session.truncate(120);
  // Chunk borders differ, so sums may round differently in the last bits.
  const auto found = last_row(*session.forward(std::span(tokens).subspan(120)));
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-5);
}

TEST_F(SessionTest, ReusesTheLongestCommonPrefix) {
  const auto model = load();
  Session session = model->session(exact());
  std::vector<Token> tokens = random_tokens(40, 6);
  session.forward(tokens);
  EXPECT_EQ(session.reuse_prefix(tokens), 39);  // one token has to be read for its logits
  EXPECT_EQ(session.n_tokens(), 39);
  tokens[10] = tokens[10] == 4 ? 5 : 4;
  EXPECT_EQ(session.reuse_prefix(tokens), 10);
  EXPECT_EQ(session.n_tokens(), 10);
  EXPECT_EQ(session.reuse_prefix({}), 0);
}

TEST_F(SessionTest, ReadsEverythingAgainWhereAWindowHasDroppedRows) {
  const auto model = load(1, {.window = 16});
  Session session = model->session(exact("f16"));
  std::vector<Token> tokens = random_tokens(1000, 6);
  session.forward(tokens);
  EXPECT_LT(session.cache().stats().tokens_kept, 1000);
  EXPECT_THROW(session.truncate(100), CapacityError);
  EXPECT_EQ(session.n_tokens(), 1000);
  tokens[100] = tokens[100] == 4 ? 5 : 4;
  EXPECT_EQ(session.reuse_prefix(tokens), 0);
  EXPECT_EQ(session.n_tokens(), 0);
}

TEST_F(SessionTest, AFailedOrCancelledForwardLeavesTheSessionUsable) {
  const auto model = load();
  SessionOptions options = exact();
  options.n_ctx = 64;
  options.n_batch = 16;
  Session session = model->session(options);
  session.forward(random_tokens(30, 1));
  EXPECT_THROW(session.forward(random_tokens(40, 1)), CapacityError);
  EXPECT_THROW(session.forward(std::vector<Token>{-1}), ConfigError);
  EXPECT_THROW(session.forward(std::vector<Token>{1 << 20}), ConfigError);
  EXPECT_THROW(session.forward({}), ConfigError);
  EXPECT_EQ(session.n_tokens(), 30);
  EXPECT_NE(session.last_logits(), nullptr);
  EXPECT_THROW(session.forward(random_tokens(32, 2), false, [](int64_t, int64_t) { return false; }),
               CancelledError);
  EXPECT_EQ(session.n_tokens(), 46);
  EXPECT_EQ(session.last_logits(), nullptr);
  EXPECT_EQ(session.cache().n_tokens(), 46);
  session.forward(random_tokens(18, 3));
  EXPECT_EQ(session.n_tokens(), 64);
}

TEST_F(SessionTest, LogitsStayValidWhileSomebodyHoldsThem) {
  const auto model = load();
  Session session = model->session(exact());
  const auto first = session.forward(random_tokens(5, 1));
  const std::vector<float> copy = first->values;
  session.forward(random_tokens(5, 2));
  EXPECT_EQ(first->values, copy);
}

TEST_F(SessionTest, SavedSessionsContinueBitIdentically) {
  for (const char* cache : {"f16", "q4_0", "k=int8:group=32,tail=64+v=int4:group=32,tail=32"}) {
    const auto model = load();
    SessionOptions options = exact(cache);
    options.exact = false;
    Session session = model->session(options);
    session.forward(random_tokens(300, 1));
    session.save(folder_ / "session");
    Session restored = model->restore(folder_ / "session");
    EXPECT_EQ(restored.n_tokens(), 300);
    EXPECT_EQ(last_row(*restored.last_logits()), last_row(*session.last_logits()));
    for (int step = 0; step < 80; ++step) {
      const std::vector<Token> token = random_tokens(1, static_cast<uint32_t>(step));
      ASSERT_EQ(last_row(*restored.forward(token)), last_row(*session.forward(token)))
          << cache << " step " << step;
    }
  }
}

TEST_F(SessionTest, DamagedSessionFilesAreRefused) {
  const auto model = load();
  Session session = model->session(exact("int4:group=32,tail=64"));
  session.forward(random_tokens(150, 1));
  session.save(folder_ / "session");
  const MappedFile file = MappedFile::read(folder_ / "session");
  const std::vector<std::byte> good(file.bytes().begin(), file.bytes().end());
  for (size_t percent = 0; percent < 100; ++percent) {
    const auto cut = std::span(good).first(good.size() * percent / 100);
    EXPECT_THROW(model->restore(folder_.write("cut", cut)), FormatError) << percent;
    std::vector<std::byte> flipped = good;
    flipped[good.size() * percent / 100] ^= std::byte{0x10};
    EXPECT_THROW(model->restore(folder_.write("flipped", flipped)), Error) << percent;
  }
  std::vector<std::byte> newer = good;
  newer[8] = std::byte{99};
  EXPECT_THROW(model->restore(folder_.write("newer", newer)), UnsupportedError);
  EXPECT_THROW(model->restore(folder_ / "missing"), IoError);
  const auto other = load_tiny(folder_, {.seed = 2});
  EXPECT_THROW(other->restore(folder_ / "session"), ConfigError);
}

TEST_F(SessionTest, OptionsAreChecked) {
  const auto model = load();
  SessionOptions options;
  options.n_ctx = -5;
  EXPECT_THROW(model->session(options), ConfigError);
  options.n_ctx = 64;
  options.n_batch = -1;
  EXPECT_THROW(model->session(options), ConfigError);
  options.n_batch = 8;
  options.cache = CacheSpec::parse("int4:group=64,tail=0");  // head_dim is 32
  EXPECT_THROW(model->session(options), ConfigError);
}

TEST_F(SessionTest, PassesAreLongWhereNothingIsSealedOrDroppedMeanwhile) {
  const auto model = load();
  const auto n_batch = [&](std::string_view cache) {
    SessionOptions options;
    options.n_ctx = 2048;
    options.cache = CacheSpec::parse(cache);
    return model->session(options).options().n_batch;
  };
  for (const char* cache : {"f16", "f32", "k=bf16+v=f16", "h2o:keep=0.5", "snapkv:keep=0.5+int4",
                            "kivi2", "k=int4+v=int4:prefill=exact"}) {
    EXPECT_EQ(n_batch(cache), 512) << cache;
  }
  for (const char* cache :
       {"int4", "v=int8", "hadamard", "f16+int4:first=1", "h2o:keep=0.5,prompt=chunked"}) {
    EXPECT_EQ(n_batch(cache), 256) << cache;
  }
}

}  // namespace
}  // namespace kve::test
