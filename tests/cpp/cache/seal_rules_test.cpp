// When rows leave the tail: the methods' own rules, seen through views.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cache/cache_testing.h"

namespace kve {
namespace {

const char* const kKivi =
    "k=int2:per=channel,group=32,tail=128,seal=window,prefill=exact+v=int2:group=32,tail=128,"
    "seal=row";

std::vector<LayerShape> one_layer() { return {{2, 32, 32, 0}}; }

// What was fed, through f16.
std::vector<float> exact_rows(ConstMat rows, int head, int dim) {
  std::vector<float> out;
  for (int64_t r = 0; r < rows.rows; ++r) {
    for (int i = 0; i < dim; ++i) {
      out.push_back(half_to_float(float_to_half(rows.row(r)[head * dim + i])));
    }
  }
  return out;
}

// The state machine of the method specification, 17.1, with g = 32 and R = 128.
TEST(SealRules, KiviIsItsStateMachine) {
  const CacheSpec spec = CacheSpec::parse("kivi2");
  EXPECT_EQ(spec, CacheSpec::parse(kKivi));
  SealOnlyBackend backend;
  const TokenRows tokens(one_layer(), 700, 1);
  KvCache cache(spec, one_layer());
  tokens.pass(&cache, backend, 300);
  EXPECT_EQ(held(cache, false), (Held{0, 256, 44}));
  EXPECT_EQ(held(cache, true), (Held{0, 172, 128}));
  for (int n = 301; n <= 384; ++n) {
    tokens.pass(&cache, backend, 1);
    EXPECT_EQ(held(cache, false), (Held{0, n / 128 * 128, n % 128}));
    EXPECT_EQ(held(cache, true), (Held{0, n - 128, 128}));
  }
  EXPECT_EQ(held(cache, false), (Held{0, 384, 0}));
  EXPECT_EQ(held(cache, true), (Held{0, 256, 128}));
  for (const auto& [n, key_codes, value_codes] : {std::tuple{128, 128, 0}, {100, 0, 0}}) {
    KvCache prompt(spec, one_layer());
    tokens.pass(&prompt, backend, n);
    EXPECT_EQ(held(prompt, false), (Held{0, key_codes, n - key_codes}));
    EXPECT_EQ(held(prompt, true), (Held{0, value_codes, n - value_codes}));
  }
  // The tails are what was fed, in f16.
  const std::vector<float> values = read_rows(cache, 0, 1, true);
  const std::vector<float> newest = exact_rows(tokens.v(0, 256, 128), 1, 32);
  EXPECT_TRUE(std::equal(newest.begin(), newest.end(), values.begin() + 256 * 32));
}

// Chunks of a prompt meet exact rows, and so does the rest of the same chunk.
TEST(SealRules, ExactPrefillCodesNothingBeforeThePromptEnds) {
  SealOnlyBackend backend;
  const TokenRows tokens(one_layer(), 700, 2);
  for (const char* text : {"kivi4", "decoquant4", "int4:tail=0,prefill=exact",
                           "hadamard+lm3:tail=0,prefill=exact,sinks=4", "k=f16+v=kivi2"}) {
    SCOPED_TRACE(text);
    const CacheSpec spec = CacheSpec::parse(text);
    KvCache whole(spec, one_layer());
    tokens.pass(&whole, backend, 600);
    KvCache chunks(spec, one_layer());
    for (int n = 0; n < 500; n += 100) {
      tokens.pass(&chunks, backend, 100, true);
      EXPECT_EQ(held(chunks, true), (Held{spec.sinks, 0, n + 100 - spec.sinks}));
    }
    tokens.pass(&chunks, backend, 100);
    EXPECT_EQ(chunks.save(), whole.save());
    EXPECT_EQ(chunks.stats().bytes, chunks.memory().live());
  }
}

// Rows that wait for the end of a prompt of which the length is known do not move, and what was
// expected and did not come leaves nothing.
TEST(SealRules, ExpectedPromptsStayInPlace) {
  SealOnlyBackend backend;
  const TokenRows tokens(one_layer(), 1200, 2);
  for (const char* text : {"kivi4", "decoquant4", "hadamard+lm3:tail=0,prefill=exact,sinks=4"}) {
    SCOPED_TRACE(text);
    const CacheSpec spec = CacheSpec::parse(text);
    KvCache whole(spec, one_layer());
    tokens.pass(&whole, backend, 1100);
    KvCache cache(spec, one_layer());
    cache.expect(1100);
    const uint16_t* first = nullptr;
    for (int n = 0; n < 1000; n += 100) {
      tokens.pass(&cache, backend, 100, true);
      const uint16_t* tail = cache.view(0)[0].k.tail;
      if (n == 0) first = tail;
      ASSERT_EQ(tail, first) << n;
    }
    EXPECT_EQ(cache.stats().bytes, cache.memory().live());
    tokens.pass(&cache, backend, 100);
    cache.expect(0);
    EXPECT_EQ(cache.save(), whole.save());
    EXPECT_LE(cache.memory().live(), whole.memory().live());

    KvCache broken_off(spec, one_layer());
    broken_off.expect(1100);
    tokens.pass(&broken_off, backend, 100, true);
    const int64_t reserved = broken_off.memory().live();
    broken_off.expect(0);
    EXPECT_LT(broken_off.memory().live(), reserved / 2);

    KvCache limited(spec, one_layer());
    limited.limit_memory(100'000);
    limited.expect(100'000);
    tokens.pass(&limited, backend, 100, true);
    EXPECT_EQ(limited.n_tokens(), 100);
  }
}

// The state depends on the tokens, not on how they came: in one pass, in chunks, or one by one.
TEST(SealRules, ChunksGiveTheSameStateAsTokens) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> shapes = {
      {2, 32, 32, 0, std::make_shared<Rotation>(Rotation{{1, 0.5, 0.25, 0.01}, false})},
      {2, 32, 32, 150}};
  const TokenRows tokens(shapes, 520, 3);
  for (const char* text :
       {"f16", "q8_0", "int4", "int4:tail=0", "int3:tail=7,seal=row,sinks=3", kKivi,
        "int2:per=channel,group=64,tail=10,sinks=63", "lm2:channels=scaled,tail=0,sinks=4",
        "hadamard+sym4:tail=5,seal=row", "rotation:seed=9+k=int8+v=lm4:tail=100",
        "mpo:block=16,segment=128+sym4:group=row,tail=3",
        "lowrank:rank=16,segment=64+int6:group=16",
        "k=klt:fit=128+k=int3:per=channel,group=64,tail=20,sinks=4+v=klt:fit=64+v=int4:tail=0",
        "klt:fit=64,anchor=1+int4:tail=64,seal=window", "klt:fit=64,anchor=0+f16"}) {
    SCOPED_TRACE(text);
    const CacheSpec spec = CacheSpec::parse(text);
    KvCache one_by_one(spec, shapes);
    for (int n = 0; n < 520; ++n) tokens.pass(&one_by_one, backend, 1);
    const std::vector<std::byte> expected = one_by_one.save();
    KvCache chunks(spec, shapes);
    for (const int n : {1, 63, 130, 2, 200, 124}) tokens.pass(&chunks, backend, n);
    // Bit by bit: but layers with a window drop pages at commits only, and never differ by more.
    EXPECT_EQ(chunks.save() == expected,
              chunks.view(1)[0].first_pos == one_by_one.view(1)[0].first_pos);
    for (int layer = 0; layer < 2; ++layer) {
      for (const bool values : {false, true}) {
        EXPECT_EQ(held(chunks, values, 0), held(one_by_one, values, 0));
        if (chunks.rows(layer) != one_by_one.rows(layer)) continue;
        EXPECT_EQ(read_rows(chunks, layer, 1, values), read_rows(one_by_one, layer, 1, values));
      }
    }
  }
}

TEST(SealRules, DecoQuantSealsSegments) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> shapes = {{2, 32, 64, 0}};
  const TokenRows tokens(shapes, 2496, 4);
  KvCache cache(CacheSpec::parse("decoquant4"), shapes);
  tokens.pass(&cache, backend, 1023, true);
  EXPECT_EQ(held(cache, false), (Held{0, 0, 1023}));
  tokens.pass(&cache, backend, 477);
  // The prompt's last segment is closed, but for less than a page.
  for (const bool values : {false, true}) EXPECT_EQ(held(cache, values), (Held{0, 1472, 28}));
  for (int n = 1501; n < 2496; ++n) tokens.pass(&cache, backend, 1);
  for (const bool values : {false, true}) EXPECT_EQ(held(cache, values), (Held{0, 1472, 1023}));
  EXPECT_EQ(cache.tokens_until_seal(), 1);
  tokens.pass(&cache, backend, 1);
  for (const bool values : {false, true}) EXPECT_EQ(held(cache, values), (Held{0, 2496, 0}));
  // Both heads read the same pages, each segment in a basis of its own.
  const std::span<const HeadView> heads = cache.view(0);
  EXPECT_EQ(heads[0].k.pages.data(), heads[1].k.pages.data());
  EXPECT_EQ(heads[1].k.first_channel, 32);
  EXPECT_EQ(heads[0].v.pages[15].basis, 0);
  EXPECT_EQ(heads[0].v.pages[16].basis, 1);
  EXPECT_EQ(heads[0].v.pages[22].basis, 1);
  EXPECT_EQ(heads[0].v.pages[23].basis, 2);
  EXPECT_EQ(heads[0].v.bases[1].block, 16);
  // 4 bits with one scale for a row of 64 uniform values.
  const std::vector<float> found = read_rows(cache, 0, 1, true);
  const std::vector<float> fed = exact_rows(tokens.v(0, 0, 2496), 1, 64);
  double error = 0;
  double size = 0;
  for (size_t i = 0; i < fed.size(); ++i) {
    error += std::pow(static_cast<double>(found[i]) - static_cast<double>(fed[i]), 2);
    size += std::pow(static_cast<double>(fed[i]), 2);
  }
  EXPECT_LT(std::sqrt(error / size), 0.12);
  EXPECT_GT(std::sqrt(error / size), 0.02);
}

TEST(SealRules, KltWaitsForItsFirstTokensAndTheirQueries) {
  SealOnlyBackend backend;
  const TokenRows tokens(one_layer(), 400, 5);
  KvCache cache(CacheSpec::parse("klt:fit=128+int4:tail=10,sinks=2"), one_layer());
  EXPECT_TRUE(cache.wants_queries(0));
  for (int n = 1; n < 140; ++n) {
    EXPECT_EQ(cache.tokens_until_seal(), 141 - n);
    tokens.pass(&cache, backend, 1);
    EXPECT_EQ(held(cache, false).coded, 0);
  }
  EXPECT_EQ(cache.stats().bases, 0);
  tokens.pass(&cache, backend, 1);
  EXPECT_EQ(held(cache, false), (Held{2, 128, 10}));
  EXPECT_FALSE(cache.wants_queries(0));
  EXPECT_GT(cache.stats().bases, 0);
  EXPECT_EQ(cache.tokens_until_seal(), 64);
  KvCache plain(CacheSpec::parse("k=hadamard+k=int4"), one_layer());
  EXPECT_FALSE(plain.wants_queries(0));
}

TEST(SealRules, SinksAreNeverCoded) {
  SealOnlyBackend backend;
  const TokenRows tokens(one_layer(), 300, 6);
  for (const char* text : {"int1:tail=0,sinks=5", "kivi2", "best2", "lm1:sinks=63,tail=1,seal=row",
                           "mpo:segment=64+sym2:group=row,tail=0,sinks=1"}) {
    SCOPED_TRACE(text);
    const CacheSpec spec = CacheSpec::parse(text);
    KvCache cache(spec, one_layer());
    tokens.pass(&cache, backend, 2);  // fewer than most have
    tokens.pass(&cache, backend, 298);
    for (const bool values : {false, true}) {
      EXPECT_EQ(held(cache, values).sinks, spec.sinks);
      const ConstMat fed = values ? tokens.v(0, 0, spec.sinks) : tokens.k(0, 0, spec.sinks);
      const std::vector<float> first = exact_rows(fed, 0, 32);
      const std::vector<float> found = read_rows(cache, 0, 0, values);
      EXPECT_TRUE(std::equal(first.begin(), first.end(), found.begin()));
    }
    EXPECT_EQ(cache.view(0)[0].page_offset, spec.sinks);
    // Forgotten, and filled again.
    cache.truncate(1);
    EXPECT_EQ(held(cache, false), (Held{std::min(1, spec.sinks), 0, 1 - std::min(1, spec.sinks)}));
    tokens.pass(&cache, backend, 200);
    EXPECT_EQ(held(cache, true).sinks, spec.sinks);
  }
}

// Until the token that tokens_until_seal() names, nothing that was there is coded.
TEST(SealRules, TokensUntilSealIsTrue) {
  SealOnlyBackend backend;
  const TokenRows tokens(one_layer(), 600, 7);
  for (const char* text : {"int4", kKivi, "mpo:segment=128+sym4:group=row,tail=9",
                           "klt:fit=128+int4:tail=3", "k=f16+v=int3:tail=30,sinks=7"}) {
    SCOPED_TRACE(text);
    KvCache cache(CacheSpec::parse(text), one_layer());
    const auto coded = [&] {
      const int keys = cache.spec().k.eager() ? 0 : held(cache, false).coded;
      return keys + held(cache, true).coded;
    };
    while (cache.n_tokens() < 500) {
      const int until = cache.tokens_until_seal();
      ASSERT_GE(until, 1);
      const int before = coded();
      if (until > 1) tokens.pass(&cache, backend, until - 1);
      EXPECT_EQ(coded(), before) << cache.n_tokens();
      tokens.pass(&cache, backend, 1);
      EXPECT_GT(coded(), before) << cache.n_tokens();
    }
  }
  EXPECT_GT(KvCache(CacheSpec::parse("q8_0"), one_layer()).tokens_until_seal(), 1'000'000);
}

// Rows of a group of tokens, or of a segment, that are cut in the middle go back to the tail as
// they were decoded, in f16; others stay as they are.
TEST(SealRules, TruncatingIntoPagesKeepsWhatWasRead) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> shapes = {
      {2, 32, 32, 0, std::make_shared<Rotation>(Rotation{{1, 0.5, 0.25, 0.01}, true})}};
  const TokenRows tokens(shapes, 700, 8);
  for (const char* text :
       {"int4:tail=0", "kivi2", "int4:per=channel,group=64,tail=5,sinks=3",
        "lm3:channels=scaled,tail=0", "klt:fit=64+int5:per=channel,group=32",
        "klt:fit=64,anchor=1+nf4:group=16", "mpo:segment=128+sym8:group=row,tail=0",
        "lowrank:rank=16,segment=64+int8:group=16,tail=70"}) {
    SCOPED_TRACE(text);
    const CacheSpec spec = CacheSpec::parse(text);
    KvCache full(spec, shapes);
    tokens.pass(&full, backend, 333);
    for (const int n : {330, 300, 256, 129, 128, 100, 65, 33, 4}) {
      KvCache cache = full.fork();
      cache.truncate(n);
      for (const bool values : {false, true}) {
        const Held now = held(cache, values);
        const int unit = rows_per_unit(cache.view(0)[0].v.format);
        EXPECT_EQ(now.sinks + now.coded + now.tail, n);
        if (spec.v.projector.segment > 0) {
          EXPECT_EQ(now.coded % kPageTokens, 0);
        } else if (values) {
          EXPECT_EQ(now.coded, std::min(held(full, true).coded, (n - now.sinks) / unit * unit));
        }
        const std::vector<float> before = read_rows(full, 0, 1, values);
        const std::vector<float> after = read_rows(cache, 0, 1, values);
        ASSERT_EQ(after.size(), static_cast<size_t>(n * 32));
        for (size_t i = 0; i < after.size(); ++i) {
          const bool is_coded = i / 32 >= static_cast<size_t>(now.sinks) &&
                                i / 32 < static_cast<size_t>(now.sinks + now.coded);
          const float expected = is_coded ? before[i] : half_to_float(float_to_half(before[i]));
          ASSERT_EQ(after[i], expected) << "row " << i / 32 << " of " << n;
        }
      }
      ASSERT_EQ(cache.stats().bytes, cache.stats().codes + cache.stats().scales +
                                         cache.stats().bases + cache.stats().tail +
                                         cache.stats().meta);
      // It goes on from there, and the other branch has not changed.
      const std::vector<std::byte> other = full.save();
      for (int i = 0; i < 3; ++i) tokens.pass(&cache, backend, 80);
      EXPECT_EQ(cache.rows(0), n + 240);
      EXPECT_EQ(full.save(), other);
    }
  }
}

}  // namespace
}  // namespace kve
