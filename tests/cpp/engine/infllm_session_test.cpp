// Sessions whose caches keep blocks (infllm): spans, batches, files, contexts beyond the model's.
#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/forward_batch.h"
#include "engine/tiny_model.h"

namespace kve::test {
namespace {

constexpr const char* kBlocks = "infllm:init=5,local=60,block=64,topk=2,span=24";

class InfLlmSession : public ::testing::Test {
 protected:
  static SessionOptions options(std::string_view cache, int n_batch = 256, int n_ctx = 0) {
    SessionOptions o;
    o.cache = CacheSpec::parse(cache);
    o.exact = true;
    o.n_batch = n_batch;
    o.n_ctx = n_ctx;
    return o;
  }
  TemporaryFolder folder_;
};

TEST_F(InfLlmSession, ReadsSpansWhateverTheBatchIs) {
  const auto model = load_tiny(folder_, {}, 2);
  const std::vector<Token> tokens = random_tokens(700, 3);
  std::vector<float> expected;
  for (const int n_batch : {1, 24, 100, 256}) {
    Session session = model->session(options(kBlocks, n_batch));
    EXPECT_EQ(session.options().n_batch, 24);
    EXPECT_EQ(session.max_ahead(), 1);
    const auto logits = session.forward(tokens, true);
    if (expected.empty()) expected = logits->values;
    EXPECT_EQ(logits->values, expected) << n_batch;
  }
  // With a window over everything it is ordinary attention, in chunks of a span.
  Session wide = model->session(options("infllm:local=700,span=24"));
  Session plain = model->session(options("f16", 24));
  EXPECT_EQ(wide.forward(tokens, true)->values, plain.forward(tokens, true)->values);
  EXPECT_NE(expected, wide.last_logits()->values);
}

TEST_F(InfLlmSession, GoesBeyondTheContextOfTheModel) {
  const auto model = load_tiny(folder_, {.n_ctx = 128}, 2);
  Session session = model->session(options(kBlocks, 256, 3000));
  session.forward(random_tokens(2500, 5));
  EXPECT_EQ(session.n_tokens(), 2500);
  EXPECT_EQ(session.cache().stats().tokens_kept, 2500);
}

TEST_F(InfLlmSession, SharesBatchesWithOtherCaches) {
  const auto model = load_tiny(folder_, {}, 2);
  std::deque<Session> together, alone;
  std::vector<std::vector<Token>> prompts;
  for (const char* cache : {kBlocks, "f16", "infllm:init=2,local=30,block=64,topk=1,span=30"}) {
    together.push_back(model->session(options(cache, 24)));
    alone.push_back(model->session(options(cache, 24)));
    prompts.push_back(random_tokens(200, static_cast<uint32_t>(prompts.size())));
  }
  for (int step = 0; step < 5; ++step) {
    std::vector<BatchInput> inputs;
    for (size_t i = 0; i < prompts.size(); ++i) inputs.push_back({&together[i], prompts[i]});
    const auto logits = forward_batch(inputs);
    for (size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(logits[i]->values, alone[i].forward(prompts[i])->values) << step << ", " << i;
      prompts[i] = random_tokens(1, static_cast<uint32_t>(step));
    }
  }
}

TEST_F(InfLlmSession, LeavesLayersWithWindowsAlone) {
  TinyModel gemma{.arch = "gemma3", .n_layers = 6, .window = 32};
  const auto model = load_tiny(folder_, gemma, 2);
  Session session = model->session(options(std::string(kBlocks) + "+int4:tail=50"));
  session.forward(random_tokens(500, 3));
  int with_blocks = 0;
  for (int layer = 0; layer < 6; ++layer) with_blocks += session.cache().attends_apart(layer);
  EXPECT_EQ(with_blocks, 1);  // every sixth
}

TEST_F(InfLlmSession, IsSavedWithItsFile) {
  const auto model = load_tiny(folder_, {}, 2);
  Session session = model->session(options(std::string(kBlocks) + ",resident=2,offload=file"));
  session.forward(random_tokens(500, 3));
  EXPECT_GT(session.cache().stats().offloaded, 0);
  const auto path = folder_ / "session";
  session.save(path);
  Session restored = model->restore(path);
  Session fork = session.fork();
  const std::vector<Token> more = random_tokens(100, 9);
  const std::vector<float> expected = session.forward(more, true)->values;
  EXPECT_EQ(restored.forward(more, true)->values, expected);
  EXPECT_EQ(fork.forward(more, true)->values, expected);
  // Another prompt is read from its start.
  EXPECT_EQ(session.reuse_prefix(random_tokens(550, 3)), 0);
  EXPECT_EQ(session.cache().stats().offloaded, 0);
}

}  // namespace
}  // namespace kve::test
