// Caches with blocks (InfLLM): attention against the definition in float64, memory, files, states.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/temporary_folder.h"
#include "cache/infllm_testing.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

// 4 query heads in 2 kv heads, rows of 32 values.
constexpr const char* kSmall = "infllm:init=10,local=100,block=64,topk=2,span=32";
const std::vector<int> kSpans = {32, 32, 32, 31, 32, 7,  1, 1,  32, 32, 32, 32, 20, 1,
                                 1,  1,  1,  32, 32, 32, 9, 32, 32, 32, 32, 1,  1,  1};

// Every span and both layers against the definition; how many sets of blocks were retrieved.
size_t compare(const std::string& text, const std::vector<int>& spans, double tolerance) {
  const auto backend = make_cpu_backend(2, "");
  const std::vector<LayerShape> shapes = select_shapes(2);
  const TokenRows tokens(shapes, std::accumulate(spans.begin(), spans.end(), 0), 21);
  KvCache cache(CacheSpec::parse(text), shapes);
  ReferenceInfLlm reference(tokens, 1, cache.spec().selector, cache.spec().k.codec);
  std::set<std::vector<int>> retrieved;
  for (const int n : spans) {
    const int first = cache.n_tokens();
    const std::vector<double> expected = reference.attend(n);
    const std::vector<float> found = read_tokens(tokens, &cache, *backend, n);  // of layer 1
    retrieved.insert(reference.retrieved());
    double worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      worst = std::max(worst, std::abs(double{found[i]} - expected[i]));
    }
    EXPECT_LT(worst, tolerance) << n << " tokens from " << first;
    EXPECT_EQ(cache.stats().bytes, cache.memory().live());
  }
  return retrieved.size();
}

// Outputs are of size 1. Sums of a few hundred terms in f32 differ by 1e-5; a key that was turned
// back in f32 may be rounded to the other of two halves, which are 2^-11 of it apart, and changes
// its weight (at most a tenth of all) by a few thousandths.
constexpr double kTolerance = 3e-4;

TEST(InfLlm, EqualsTheDefinition) {
  EXPECT_GT(compare(kSmall, kSpans, kTolerance), 8u) << "too few different sets were retrieved";
}

TEST(InfLlm, EqualsTheDefinitionWithOtherParameters) {
  for (const char* text : {
           "infllm:init=0,local=32,block=64,topk=1,span=32,repr=1",
           "infllm:init=130,local=70,block=128,topk=1,span=32,repr=128",
           "infllm:init=1,local=64,block=64,topk=3,span=32,repr=7",
           "infllm:init=10,local=100,block=64,topk=0,span=32",    // no block is ever seen
           "infllm:init=10,local=100,block=64,topk=100,span=32",  // all are
           "infllm:init=10,local=1000,block=64,topk=2,span=32",   // nothing leaves the window
           "infllm:init=1000,local=40,block=64,topk=2,span=32",   // no block is ever formed
       }) {
    SCOPED_TRACE(text);
    compare(text, kSpans, kTolerance);
  }
}

TEST(InfLlm, BlocksAreCodedByAnyCodec) {
  for (const char* codec : {"f32", "bf16", "q8_0", "int8", "int4", "int3:per=channel,group=64",
                            "lm4:tail=0", "int4:outliers=2%,sinks=4"}) {
    SCOPED_TRACE(codec);
    // A half that is rounded to the other side may fall into another code: coarser than above.
    compare(std::string(kSmall) + "+" + codec, kSpans, 3e-3);
  }
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 1000, 3);
  const auto bytes_with = [&](const char* codec) {
    KvCache cache(CacheSpec::parse(std::string(kSmall) + codec), select_shapes(1));
    for (int i = 0; i < 30; ++i) read_tokens(tokens, &cache, *backend, 32);
    const CacheStats stats = cache.stats();
    return stats.codes + stats.scales;
  };
  // 13 of 15 pages are those of blocks... of 4.5 to 5 bits instead of 16.
  EXPECT_LT(bytes_with("+int4"), bytes_with("") * 55 / 100);
}

// What all spans gave, bit for bit.
std::vector<float> outputs(KvCache* cache, Backend& backend, const TokenRows& tokens,
                           const std::vector<int>& spans) {
  std::vector<float> out;
  for (const int n : spans) {
    const std::vector<float> span = read_tokens(tokens, cache, backend, n);
    out.insert(out.end(), span.begin(), span.end());
  }
  return out;
}

std::vector<float> outputs(const std::string& text, int n_threads) {
  const auto backend = make_cpu_backend(n_threads, "");
  const TokenRows tokens(select_shapes(2), 1000, 21);
  KvCache cache(CacheSpec::parse(text), select_shapes(2));
  return outputs(&cache, *backend, tokens, kSpans);
}

TEST(InfLlm, ThreadsAndFilesChangeNoBit) {
  for (const char* codec : {"", "+int4"}) {
    const std::vector<float> expected = outputs(kSmall + std::string(codec), 1);
    EXPECT_EQ(outputs(kSmall + std::string(codec), 2), expected);
    const test::TemporaryFolder folder;
    for (const std::string& file :
         {std::string(",offload=file,resident=2"), std::string(",offload=file,resident=3"),
          ",resident=40,offload=" + folder.path().string()}) {
      EXPECT_EQ(outputs(kSmall + file + codec, 2), expected) << file;
    }
  }
}

TEST(InfLlm, WithinTheWindowItIsOrdinaryAttention) {
  const auto backend = make_cpu_backend(2, "");
  const TokenRows tokens(select_shapes(1), 200, 4);
  KvCache blocks(CacheSpec::parse("infllm:local=200,span=200"), select_shapes(1));
  KvCache plain(CacheSpec::parse("f16"), select_shapes(1));
  for (const int n : {150, 1, 30, 19}) {
    EXPECT_EQ(read_tokens(tokens, &blocks, *backend, n), read_tokens(tokens, &plain, *backend, n));
  }
}

// Formula of the paper's memory (methods: n_init + n_local + l max(topk, resident) + l + span
// tokens, and a vector of all query heads for every block), from the allocator.
TEST(InfLlm, ResidentMemoryIsBounded) {
  const auto backend = make_cpu_backend(2, "");
  const std::vector<LayerShape> shapes = select_shapes(1);
  const TokenRows tokens(shapes, 32 * 260, 5);
  KvCache cache(CacheSpec::parse(std::string(kSmall) + ",resident=5,offload=file"), shapes);
  const SelectorSpec& spec = cache.spec().selector;
  const int64_t token_bytes = int64_t{2} * 2 * 2 * kSelectDim;  // sides, heads, bytes
  const int64_t formula =
      (spec.init + spec.local + spec.block * spec.resident + spec.block + spec.span) * token_bytes;
  // A page of either end of the window that is not full.
  const int64_t pages = 2 * kPageTokens * token_bytes;
  int64_t at_2000 = 0;
  for (int span = 0; span < 260; ++span) {
    read_tokens(tokens, &cache, *backend, 32);
    const CacheStats stats = cache.stats();
    ASSERT_EQ(stats.bytes, cache.memory().live());
    ASSERT_LE(stats.codes + stats.scales + stats.tail, formula + pages) << stats.tokens_seen;
    const int blocks =
        std::max(0, static_cast<int>(stats.tokens_seen) - spec.local - spec.init) / spec.block;
    ASSERT_EQ(stats.offloaded, blocks * spec.block * token_bytes);
    ASSERT_EQ(stats.tokens_kept, stats.tokens_seen);
    const int64_t named = blocks * 4 * kSelectDim * 2;  // f16 of 4 query heads
    // What grows is named with up to an eighth to spare, and the table of blocks.
    if (stats.tokens_seen == 32 * 63) at_2000 = stats.bytes - named;
    if (at_2000 > 0) {
      ASSERT_LE(stats.bytes, at_2000 + named * 9 / 8 + 32 * blocks + 4096) << stats.tokens_seen;
    }
  }
  EXPECT_LT(cache.stats().bytes, cache.stats().f16_bytes / 6);
  EXPECT_LT(cache.memory().peak(), cache.stats().bytes * 5 / 4);
  // Decoding needs less: no span has to leave the window at once.
  const int64_t after_prompt = cache.stats().tail;
  const TokenRows more(shapes, 32 * 260 + 3, 5);
  for (int i = 0; i < 3; ++i) read_tokens(more, &cache, *backend, 1);
  EXPECT_LT(cache.stats().tail, after_prompt);
}

TEST(InfLlm, SavedForkedAndRestored) {
  const auto backend = make_cpu_backend(2, "");
  const TokenRows tokens(select_shapes(2), 1200, 21);
  for (const char* more : {"", ",resident=2,offload=file", "+int4"}) {
    SCOPED_TRACE(more);
    const std::string text = std::string(kSmall) + more;
    for (const std::vector<int>& before : {std::vector<int>{}, {32, 5}, {32, 32, 32, 10}, kSpans}) {
      KvCache cache(CacheSpec::parse(text), select_shapes(2));
      outputs(&cache, *backend, tokens, before);
      const std::vector<std::byte> saved = cache.save();
      KvCache loaded(CacheSpec::parse(text), select_shapes(2));
      loaded.load(saved);
      EXPECT_EQ(loaded.save(), saved);
      EXPECT_EQ(loaded.stats().bytes, loaded.memory().live());
      KvCache fork = cache.fork();
      const std::vector<int> after = {1, 32, 1, 32, 32, 32, 1};
      // In turns: blocks that forks make apart must not meet in the file.
      for (const int n : after) {
        const std::vector<float> expected = read_tokens(tokens, &cache, *backend, n);
        EXPECT_EQ(read_tokens(tokens, &loaded, *backend, n), expected);
        EXPECT_EQ(read_tokens(tokens, &fork, *backend, n), expected);
      }
      EXPECT_EQ(loaded.save(), cache.save());
      EXPECT_EQ(fork.save(), cache.save());
    }
  }
}

TEST(InfLlm, ForksThatDifferKeepTheirOwnBlocks) {
  const auto backend = make_cpu_backend(1, "");
  const std::string text = std::string(kSmall) + ",resident=2,offload=file";
  const TokenRows one(select_shapes(1), 1200, 21);
  const TokenRows other(select_shapes(1), 1200, 22);
  KvCache cache(CacheSpec::parse(text), select_shapes(1));
  outputs(&cache, *backend, one, kSpans);
  const std::vector<std::byte> saved = cache.save();
  std::vector<std::byte> expected;
  {
    KvCache fork = cache.fork();
    for (int i = 0; i < 8; ++i) {
      read_tokens(other, &fork, *backend, 32);
      read_tokens(one, &cache, *backend, 32);
    }
    KvCache alone(CacheSpec::parse(text), select_shapes(1));
    alone.load(saved);
    for (int i = 0; i < 8; ++i) read_tokens(other, &alone, *backend, 32);
    EXPECT_EQ(fork.save(), alone.save());
    expected = cache.save();
  }
  EXPECT_EQ(cache.save(), expected);  // what the fork gave back to the file was its own
  read_tokens(one, &cache, *backend, 32);
}

TEST(InfLlm, FailedPassesChangeNothing) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(2), 1200, 21);
  KvCache cache(CacheSpec::parse(kSmall), select_shapes(2));
  KvCache other(CacheSpec::parse(kSmall), select_shapes(2));
  for (const int n : kSpans) {
    attend_tokens(tokens, &other, *backend, std::max(1, n - 1));
    other.rollback();
    attend_tokens(tokens, &other, *backend, n);
    other.prepare_commit(*backend, n);
    other.rollback();
    EXPECT_EQ(other.save(), cache.save());
    EXPECT_EQ(read_tokens(tokens, &other, *backend, n), read_tokens(tokens, &cache, *backend, n));
  }
  EXPECT_EQ(other.save(), cache.save());
  // Out of memory where a block is formed.
  other.limit_memory(other.memory().live() + 1000);
  const std::vector<std::byte> saved = other.save();
  bool failed = false;
  for (int i = 0; i < 10 && !failed; ++i) {
    const std::vector<std::byte> before = other.save();
    try {
      read_tokens(tokens, &other, *backend, 32);
    } catch (const CapacityError&) {
      failed = true;
      other.rollback();
      EXPECT_EQ(other.save(), before);
    }
  }
  EXPECT_TRUE(failed);
  other.limit_memory(INT64_MAX);
  while (cache.n_tokens() < other.n_tokens()) read_tokens(tokens, &cache, *backend, 32);
  EXPECT_EQ(read_tokens(tokens, &other, *backend, 32), read_tokens(tokens, &cache, *backend, 32));
}

TEST(InfLlm, GoesBackOnlyWhileNothingHasLeft) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 300, 21);
  KvCache cache(CacheSpec::parse(kSmall), select_shapes(1));
  outputs(&cache, *backend, tokens, {32, 32, 32});
  cache.truncate(50);
  EXPECT_EQ(cache.n_tokens(), 50);
  outputs(&cache, *backend, tokens, {32, 32});
  EXPECT_FALSE(cache.can_truncate(113));
  EXPECT_TRUE(cache.can_truncate(114));
  EXPECT_EQ(message_of<CapacityError>([&] { cache.truncate(60); }),
            "cache: cannot go back from 114 to 60 tokens: the first 14 have left the local window "
            "of infllm");
  cache.truncate(0);
  KvCache fresh(CacheSpec::parse(kSmall), select_shapes(1));
  for (const int n : {32, 32, 32, 32, 32, 32, 1}) {
    EXPECT_EQ(read_tokens(tokens, &cache, *backend, n), read_tokens(tokens, &fresh, *backend, n));
  }
  EXPECT_EQ(cache.save(), fresh.save());
}

// What a broken model may ask: scores of blocks and weights of rows are then no numbers either.
TEST(InfLlm, QueriesWithoutNumbersDoNoHarm) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 1200, 21);
  KvCache cache(CacheSpec::parse(kSmall), select_shapes(1));
  outputs(&cache, *backend, tokens, std::vector<int>(15, 32));
  const AttendParams params = select_params();
  std::vector<float> q(size_t{32} * 4 * kSelectDim, 3e38f);
  for (size_t i = 0; i < q.size(); i += 3) q[i] = NAN;
  for (size_t i = 1; i < q.size(); i += 5) q[i] = -INFINITY;
  std::vector<float> out(q.size());
  cache.append(*backend, 0, tokens.k(0, 480, 32), tokens.v(0, 480, 32));
  cache.attend(*backend, params, 0, {q.data(), 32, 4 * kSelectDim},
               {out.data(), 32, 4 * kSelectDim});
  cache.commit(*backend, 32);
  outputs(&cache, *backend, tokens, std::vector<int>(15, 32));
  EXPECT_EQ(cache.n_tokens(), 31 * 32);
  EXPECT_EQ(cache.stats().bytes, cache.memory().live());
}

TEST(InfLlm, PassesLongerThanASpanAreRefused) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 300, 21);
  KvCache cache(CacheSpec::parse(kSmall), select_shapes(1));
  EXPECT_EQ(cache.tokens_until_seal(), 1);  // tokens ahead would retrieve together
  EXPECT_EQ(message_of([&] { read_tokens(tokens, &cache, *backend, 33); }),
            "cache infllm: expected passes of at most span=32 tokens, found 33");
  read_tokens(tokens, &cache, *backend, 32);
}

TEST(InfLlm, LayersWithWindowsAreLeftAlone) {
  const auto backend = make_cpu_backend(1, "");
  std::vector<LayerShape> shapes = select_shapes(2);
  shapes[0].window = 50;
  const KvCache cache(CacheSpec::parse(kSmall), shapes);
  EXPECT_FALSE(cache.attends_apart(0));
  EXPECT_TRUE(cache.attends_apart(1));
}

TEST(InfLlm, ModelsThatDoNotFitAreRefused) {
  std::vector<LayerShape> shapes = select_shapes(1);
  shapes[0].rotation = nullptr;
  EXPECT_TRUE(contains(message_of([&] { KvCache(CacheSpec::parse("infllm"), shapes); }),
                       "cache infllm does not fit layer 0: expected keys that can be turned back"));
  EXPECT_TRUE(contains(message_of<IoError>([&] {
                         KvCache(CacheSpec::parse("infllm:offload=/no/such/folder"),
                                 select_shapes(1));
                       }),
                       "temporary file in /no/such/folder: cannot create it"));
}

// Every byte changed in turn: refused, or the state of another cache that reads on.
TEST(InfLlm, DamagedStatesAreRefusedOrWhole) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 600, 21);
  const std::string text = std::string(kSmall) + "+int4:outliers=1%";
  KvCache cache(CacheSpec::parse(text), select_shapes(1));
  outputs(&cache, *backend, tokens, {32, 32, 32, 32, 32, 32, 3});
  const std::vector<std::byte> good = cache.save();
  const std::vector<std::byte> held = cache.fork().save();
  int refused = 0;
  Random random(3);
  for (int i = 0; i < 1500; ++i) {
    std::vector<std::byte> bytes = good;
    if (i % 10 == 0) {
      bytes.resize(static_cast<size_t>(random.uniform() * static_cast<double>(bytes.size())));
    } else {
      const auto at = static_cast<size_t>(random.uniform() * static_cast<double>(bytes.size()));
      bytes[at] ^= static_cast<std::byte>(1 + i % 255);
    }
    KvCache target = cache.fork();
    try {
      target.load(bytes);
    } catch (const FormatError& error) {
      ++refused;
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos);
      EXPECT_EQ(target.save(), held);
      continue;
    }
    EXPECT_EQ(target.save(), bytes);
    try {
      outputs(&target, *backend, tokens, {32, 32, 1});
    } catch (const FormatError&) {  // other query heads
    }
  }
  EXPECT_GT(refused, 150);
}

}  // namespace
}  // namespace kve
