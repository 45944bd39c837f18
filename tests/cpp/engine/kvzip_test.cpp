// Prompts that a model is asked to repeat before rows are dropped (kvzip).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "engine/batch_generation.h"
#include "engine/forward_batch.h"
#include "engine/reference_decoder.h"
#include "engine/tiny_model.h"

namespace kve::test {
namespace {

using Kept = std::vector<std::vector<int32_t>>;  // positions, of all heads of all layers

Kept kept_of(const Session& session) {
  Kept out;
  const std::span<const LayerShape> layers = session.cache().layers();
  for (size_t i = 0; i < layers.size(); ++i) {
    for (int head = 0; head < layers[i].n_kv_heads; ++head) {
      const int layer = static_cast<int>(i);
      auto& positions = out.emplace_back(static_cast<size_t>(session.cache().rows(layer, head)));
      session.cache().read_positions(layer, head, positions);
    }
  }
  return out;
}

// What is read to repeat [first, end): written down once more, for a model without a chat template.
std::vector<Token> asked(const Model& model, std::span<const Token> prompt, size_t first,
                         size_t end) {
  const auto encoded = [&](const char* text) {
    return model.tokenizer().encode(text, {.add_special = false});
  };
  std::vector<Token> out =
      encoded(first == 0 ? "\n\nRepeat the previous context exactly."
                         : "\n\nRepeat the part of the previous context exactly, starting with");
  if (first > 0) out.insert(out.end(), prompt.begin() + first - 8, prompt.begin() + first);
  for (const Token token : encoded("\n")) out.push_back(token);
  out.insert(out.end(), prompt.begin() + first, prompt.begin() + end);
  return out;
}

struct Sizes {
  size_t prompt;
  size_t first;
  size_t end;
  size_t sinks;
  bool plus;  // KVzip+
};

// Raises scores of rows [first, end) to the weights that one query, of token i, gives them.
void raise_scores(const ReferenceDecoder::Heads& heads, const AttentionSpec& spec, size_t i,
                  size_t head, const Sizes& sizes, Row* scores) {
  const auto dim = static_cast<size_t>(spec.head_dim);
  const size_t kv_head = head / static_cast<size_t>(spec.n_heads / spec.n_kv_heads);
  Row weights(i + 1);
  double sum = 0;
  for (size_t j = 0; j <= i; ++j) {
    const bool seen = j < sizes.sinks || (j >= sizes.first && j < sizes.end) || j >= sizes.prompt;
    if (!seen) continue;
    double score = 0;
    for (size_t d = 0; d < dim; ++d) {
      score += heads.q[i][head * dim + d] * heads.k[j][kv_head * dim + d];
    }
    sum += weights[j] = std::exp(score * spec.scale);
  }
  if (sizes.plus) {
    const Row& x = heads.x[i];
    sum *= std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
    for (size_t j = 0; j <= i; ++j) weights[j] *= heads.written[j][head];
  }
  for (size_t j = sizes.first; j < sizes.end; ++j) {
    (*scores)[j] = std::max((*scores)[j], weights[j] / sum);
  }
}

// [layer * n_kv_heads + kv head][position], in double precision.
std::vector<Row> expected_scores(const Model& model, std::span<const Token> prompt, size_t chunk,
                                 size_t sinks, bool plus) {
  const ReferenceDecoder reference(model);
  const AttentionSpec& spec = model.spec().layers[0].attention;
  std::vector<Row> scores(model.spec().layers.size() * static_cast<size_t>(spec.n_kv_heads),
                          Row(prompt.size()));
  for (size_t first = 0; first < prompt.size(); first += chunk) {
    const Sizes sizes{prompt.size(), first, std::min(prompt.size(), first + chunk), sinks, plus};
    std::vector<Token> all(prompt.begin(), prompt.end());
    const std::vector<Token> input = asked(model, prompt, first, sizes.end);
    all.insert(all.end(), input.begin(), input.end());
    const std::vector<ReferenceDecoder::Heads> layers = reference.heads(all);
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      for (size_t head = 0; head < static_cast<size_t>(spec.n_heads); ++head) {
        const size_t kv_head = head / static_cast<size_t>(spec.n_heads / spec.n_kv_heads);
        Row* to = &scores[layer * static_cast<size_t>(spec.n_kv_heads) + kv_head];
        for (size_t i = prompt.size(); i < all.size(); ++i) {
          raise_scores(layers[layer], spec, i, head, sizes, to);
        }
      }
    }
  }
  for (Row& head : scores) {
    for (size_t j = 0; j < sinks; ++j) head[j] = HUGE_VAL;
  }
  return scores;
}

class KvzipTest : public ::testing::Test {
 protected:
  std::shared_ptr<Model> load(const TinyModel& tiny = {}, int threads = 2) {
    return load_tiny(folder_, tiny, threads);
  }
  static SessionOptions options(std::string_view cache, int n_batch = 256) {
    SessionOptions o;
    o.cache = CacheSpec::parse(cache);
    o.exact = true;
    o.n_batch = n_batch;
    return o;
  }
  TemporaryFolder folder_;
};

TEST_F(KvzipTest, KeepsWhatADoublePrecisionModelWould) {
  const auto model = load();
  const std::vector<Token> prompt = random_tokens(150, 3);
  struct Case {
    const char* cache;
    size_t chunk;
    size_t sinks;
    double share;
    int n_batch;
    bool plus = false;
  };
  const Case cases[] = {{"kvzip:keep=0.3", 2048, 4, 0.3, 256},
                        {"kvzip:keep=0.3,chunk=64", 64, 4, 0.3, 256},
                        {"kvzip:keep=0.5,chunk=40,sinks=0", 40, 0, 0.5, 32},
                        {"kvzip:keep=0.25,chunk=149,sinks=7", 149, 7, 0.25, 5},
                        {"kvzip:keep=0.3,plus=1", 2048, 4, 0.3, 256, true},
                        {"kvzip:keep=0.5,chunk=40,sinks=0,plus=1", 40, 0, 0.5, 32, true},
                        {"kvzip:keep=0.25,chunk=149,plus=1", 149, 4, 0.25, 5, true}};
  Kept plain;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.cache);
    const std::vector<Row> scores = expected_scores(*model, prompt, c.chunk, c.sinks, c.plus);
    Row all;
    for (const Row& head : scores) all.insert(all.end(), head.begin(), head.end());
    const size_t n_kept = static_cast<size_t>(150 * c.share) * scores.size();
    std::nth_element(all.begin(), all.begin() + n_kept - 1, all.end(), std::greater());
    const double last = all[n_kept - 1];

    Session session = model->session(options(c.cache, c.n_batch));
    session.forward(prompt);
    const Kept kept = kept_of(session);
    size_t found = 0;
    size_t least = prompt.size();
    size_t most = 0;
    for (size_t h = 0; h < kept.size(); ++h) {
      found += kept[h].size();
      least = std::min(least, kept[h].size());
      most = std::max(most, kept[h].size());
      for (const int32_t position : kept[h]) {
        // Keys are kept in binary16 (2^-11), scores are a few units: of rows that are as good as
        // the last one up to that, either may stay.
        EXPECT_GE(scores[h][static_cast<size_t>(position)], last * (1 - 5e-3)) << h;
      }
    }
    EXPECT_EQ(found, n_kept);
    EXPECT_LT(least, most);  // one budget, not one for each
    if (plain.empty()) plain = kept;
    EXPECT_TRUE(&c == &cases[0] || kept != plain);
    EXPECT_EQ(session.cache().stats().bytes, session.cache().memory().live());
  }
}

TEST_F(KvzipTest, LeavesNothingButTheDrop) {
  const auto model = load();
  const std::vector<Token> prompt = random_tokens(200, 5);
  Session full = model->session(options("f16", 64));
  Session session = model->session(options("kvzip:keep=0.3,chunk=90", 64));
  const auto expected = full.forward(prompt, true);
  const auto found = session.forward(prompt, true);
  EXPECT_EQ(found->values, expected->values);
  EXPECT_EQ(session.last_logits()->values, full.last_logits()->values);
  EXPECT_EQ(session.n_tokens(), 200);
  EXPECT_TRUE(std::ranges::equal(session.tokens(), prompt));
  EXPECT_EQ(session.cache().n_tokens(), 200);
  EXPECT_EQ(session.cache().stats().bytes, session.cache().memory().live());
  EXPECT_LT(session.cache().stats().bytes, 0.45 * static_cast<double>(full.cache().stats().bytes));
  // What follows sees what was kept, and is kept itself.
  const Kept before = kept_of(session);
  const std::vector<Token> question = random_tokens(30, 6);
  EXPECT_NE(session.forward(question)->values, full.forward(question)->values);
  Kept after = kept_of(session);
  for (size_t h = 0; h < after.size(); ++h) {
    for (int i = 0; i < 30; ++i) EXPECT_EQ(after[h][before[h].size() + i], 200 + i);
    after[h].resize(before[h].size());
  }
  EXPECT_EQ(after, before);

  session.save(folder_.path() / "session");
  Session restored = model->restore(folder_.path() / "session");
  Session fork = session.fork();
  const std::vector<Token> next = random_tokens(3, 7);
  const auto logits = session.forward(next);
  EXPECT_EQ(restored.forward(next)->values, logits->values);
  EXPECT_EQ(fork.forward(next)->values, logits->values);
}

TEST_F(KvzipTest, ThreadsAndCodecsMakeNoDifference) {
  const std::vector<Token> prompt = random_tokens(180, 8);
  Kept expected;
  Kept expected_plus;
  for (const int threads : {1, 3}) {
    const auto model = load({}, threads);
    for (const char* cache :
         {"kvzip:keep=0.4,chunk=70", "kvzip:keep=0.4,chunk=70+hadamard+int4:tail=16",
          "kvzip:keep=0.4,chunk=70+k=klt:fit=64+k=int4+v=q8_0"}) {
      Session session = model->session(options(cache, 50));
      session.forward(prompt);
      if (expected.empty()) expected = kept_of(session);
      EXPECT_EQ(kept_of(session), expected) << cache << " " << threads;
    }
    Session plus = model->session(options("kvzip:keep=0.4,chunk=70,plus=1+int4", 50));
    plus.forward(prompt);
    if (expected_plus.empty()) expected_plus = kept_of(plus);
    EXPECT_EQ(kept_of(plus), expected_plus) << threads;
  }
}

TEST_F(KvzipTest, PromptsThatLoseNothingAreNotRepeated) {
  const auto model = load();
  const std::vector<Token> prompt = random_tokens(60, 9);
  for (const char* cache : {"kvzip:keep=1", "kvzip:keep=60", "kvzip:keep=1000"}) {
    Session session = model->session(options(cache));
    int64_t total = 0;
    session.forward(prompt, false, [&](int64_t, int64_t all) {
      total = all;
      return true;
    });
    EXPECT_EQ(total, 60) << cache;
    EXPECT_EQ(session.cache().rows(0, 0), 60) << cache;
    // Whatever is read later on stays.
    session.forward(random_tokens(1500, 9));
    EXPECT_EQ(session.cache().rows(0, 0), 1560) << cache;
    EXPECT_GT(session.max_ahead(), 1);
  }
}

TEST_F(KvzipTest, CancelledRepetitionsLeaveThePromptAsItWasRead) {
  const auto model = load();
  const std::vector<Token> prompt = random_tokens(192, 10);
  const SessionOptions kvzip = options("kvzip:keep=0.3,chunk=80", 64);
  const auto cancelled_at = [&](int64_t most) {
    Session session = model->session(kvzip);
    EXPECT_THROW(session.forward(prompt, false,
                                 [&](int64_t done, int64_t total) {
                                   EXPECT_LE(done, total);
                                   return done < most;
                                 }),
                 CancelledError);
    EXPECT_EQ(session.n_tokens(), 192);
    EXPECT_EQ(session.last_logits(), nullptr);
    return session;
  };
  Session before = cancelled_at(192);  // all was read, nothing repeated
  Session within = cancelled_at(192 + 100);
  EXPECT_EQ(within.cache().save(), before.cache().save());
  EXPECT_EQ(within.cache().stats().bytes, within.cache().memory().live());
  EXPECT_EQ(within.cache().rows(1, 1), 192);

  // The prompt goes on.
  std::vector<Token> more = random_tokens(64, 11);
  within.forward(more);
  Session whole = model->session(kvzip);
  more.insert(more.begin(), prompt.begin(), prompt.end());
  whole.forward(more);
  EXPECT_EQ(kept_of(within), kept_of(whole));
  EXPECT_EQ(within.last_logits()->values, whole.last_logits()->values);
}

TEST_F(KvzipTest, NoMemoryForTheRepetition) {
  const auto model = load();
  const std::vector<Token> prompt = random_tokens(192, 12);
  SessionOptions kvzip = options("kvzip:keep=0.3", 64);
  Session full = model->session(options("f16", 64));
  full.forward(prompt);
  kvzip.kv_budget = full.cache().memory().live() * 5 / 4;
  Session session = model->session(kvzip);
  EXPECT_THROW(session.forward(prompt), CapacityError);
  EXPECT_EQ(session.n_tokens(), 192);
  EXPECT_EQ(session.cache().rows(0, 0), 192);
  EXPECT_EQ(session.cache().stats().bytes, session.cache().memory().live());
  session.truncate(0);
  session.forward(std::span(prompt).first(60));  // twice as many fit
  EXPECT_LT(session.cache().stats().tokens_kept, 60);
}

TEST_F(KvzipTest, LayersWithAWindowTakeNoPart) {
  const auto model =
      load({.arch = "gemma3", .n_layers = 7, .n_heads = 4, .n_kv_heads = 1, .window = 32});
  Session session = model->session(options("kvzip:keep=0.3,chunk=100+q8_0"));
  session.forward(random_tokens(220, 13));
  int whole = 0;
  for (size_t i = 0; i < session.cache().layers().size(); ++i) {
    const int rows = session.cache().rows(static_cast<int>(i), 0);
    if (session.cache().layers()[i].window == 0) {
      ++whole;
      EXPECT_EQ(rows, 66);  // the only one of its kind
    } else {
      EXPECT_GE(rows, 32);
    }
  }
  EXPECT_EQ(whole, 1);
}

TEST_F(KvzipTest, SessionsTogetherKeepWhatTheyKeepAlone) {
  const auto model = load();
  std::vector<std::vector<Token>> prompts;
  std::vector<Session> together;
  std::vector<BatchInput> inputs;
  for (const int n : {64, 128, 192}) {
    prompts.push_back(random_tokens(n, static_cast<uint32_t>(n)));
    together.push_back(model->session(options(n == 192 ? "f16" : "kvzip:keep=0.4,chunk=60", 64)));
  }
  for (size_t i = 0; i < prompts.size(); ++i) inputs.push_back({&together[i], prompts[i]});
  int64_t last = 0;
  int64_t total = 0;
  const auto logits = forward_batch(inputs, [&](int64_t done, int64_t all) {
    EXPECT_GT(done, last);
    last = done;
    total = all;
    return true;
  });
  EXPECT_EQ(last, total);
  for (size_t i = 0; i < prompts.size(); ++i) {
    Session alone = model->session(together[i].options());
    EXPECT_EQ(logits[i]->values, alone.forward(prompts[i])->values);
    EXPECT_EQ(kept_of(together[i]), kept_of(alone));
  }
  // A prompt that cannot be repeated ends with an error, and the others go on.
  SessionOptions tight = together[1].options();
  Session full = model->session(options("f16", 64));
  full.forward(prompts[1]);
  tight.kv_budget = full.cache().memory().live() * 5 / 4;
  tight.cache = CacheSpec::parse("kvzip:keep=0.4");
  Session failing = model->session(tight);
  Session other = model->session(together[0].options());
  BatchGeneration generation(model);
  GenerateOptions few;
  few.max_tokens = 3;
  few.ignore_eos = true;
  const int a = generation.add(failing, prompts[1], few);
  const int b = generation.add(other, prompts[0], few);
  for (int i = 0; i < 20 && generation.active() > 0; ++i) generation.step();
  EXPECT_EQ(generation.finish_reason(a), "error");
  EXPECT_NE(generation.error(a).find("memory"), std::string::npos) << generation.error(a);
  EXPECT_EQ(generation.finish_reason(b), "length");
  EXPECT_EQ(generation.generated_tokens(b), 3);
}

}  // namespace
}  // namespace kve::test
