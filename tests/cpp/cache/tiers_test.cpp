// Codecs by age: pages that are coded anew in fewer bits as they grow old, or as memory runs out.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cache/cache_testing.h"

namespace kve {
namespace {

std::string canonical(std::string_view text) { return CacheSpec::parse(text).str(); }

TEST(Tiers, CanonicalForms) {
  EXPECT_EQ(canonical("int2:older=4096 + int8 + int4:older=1024"),
            "int8:group=32,tail=64+int4:group=32,older=1024+int2:group=32,older=4096");
  EXPECT_EQ(canonical("int8:sinks=4+k=int4:older=9+v=lm3:older=70,scale=log8"),
            "k=int8:group=32,tail=64,sinks=4+k=int4:group=32,older=9"
            "+v=int8:group=32,tail=64+v=lm3:group=head,scale=log8,older=70");
  EXPECT_EQ(canonical("q8_0:tail=1+q4_0:older=1"), "q8_0:tail=1+q4_0:older=1");
  EXPECT_EQ(canonical("int8+int4:first=1+int2:older=70,first=1"),
            "int8:group=32,tail=64+int4:group=32,tail=64,first=1+int2:group=32,older=70,first=1");
  const CacheSpec spec = CacheSpec::parse("best4 + best2:older=2048");
  EXPECT_EQ(spec.k.projector.kind, ProjectorSpec::Kind::klt);
  ASSERT_EQ(spec.k.older.size(), 1u);
  EXPECT_EQ(spec.k.older[0].age, 2048);
  EXPECT_EQ(spec.k.older[0].codec, CacheSpec::parse("best2").k.codec);
  EXPECT_EQ(spec.v.older[0].codec, CacheSpec::parse("best2").v.codec);
  EXPECT_EQ(CacheSpec::parse(spec.str()), spec);
}

TEST(Tiers, BadOnesAreRefused) {
  const auto error = [](const char* text) { return message_of([&] { CacheSpec::parse(text); }); };
  EXPECT_TRUE(contains(error("f16+int4:older=64"), "expected pages of codes, found floats"));
  EXPECT_TRUE(contains(error("int4:older=64"), "expected pages of codes, found floats"));
  EXPECT_TRUE(contains(error("int8+f16:older=64"), "fewer bits with age, found f16 after int8"));
  EXPECT_TRUE(contains(error("int4+int8:older=64"), "fewer bits with age, found int8 after int4"));
  EXPECT_TRUE(contains(error("int8+int2:older=64+int4:older=128"), "found int4 after int2"));
  EXPECT_TRUE(contains(error("int8+int4:older=64+int2:older=64"), "expected different ages"));
  EXPECT_TRUE(contains(error("q8_0+q4_0:older=64"), "expected a tail, found tail=0"));
  EXPECT_TRUE(contains(error("int8+int4:older=64,tail=3"), "tail= stands with the side's first"));
  EXPECT_TRUE(contains(error("int8+int4:older=64,sinks=3"), "sinks= stands with the side's first"));
  EXPECT_TRUE(contains(error("int8+best4:older=64"), "has another projector"));
  EXPECT_TRUE(contains(error("best4+best8:older=64"), "has another projector"));
  EXPECT_TRUE(contains(error("int8+hadamard:older=64"), "expected one codec"));
  EXPECT_TRUE(contains(error("int8+int7:older=1+int6:older=2+int5:older=3+int4:older=4"),
                       "at most 3 ages, found 4"));
  EXPECT_TRUE(contains(error("int8+int4:older=64,group=row"), "expected groups within a head"));
  for (const char* text : {"int8+int4:older=0", "int8+int4:older=-1", "int8+int4:older=1000001",
                           "int8+int4:older=", "int8+int4:older=64,older=65"}) {
    EXPECT_THROW(CacheSpec::parse(text), ConfigError) << text;
  }
  const auto refusal = message_of([] {
    KvCache(CacheSpec::parse("int4:group=128+int4:older=64,group=8"), {{1, 128, 128, 0}});
  });
  EXPECT_TRUE(contains(refusal, "expected pages that become smaller")) << refusal;
  EXPECT_THROW(KvCache(CacheSpec::parse("int4:group=32+int3:older=64,group=128"), {{1, 64, 64, 0}}),
               ConfigError);
}

// What page `page` of one head must hold after `n` tokens: rows of the tail (binary16), coded by
// the first codec, and by each next one from the numbers that the one before shows.
class PageOracle {
 public:
  PageOracle(const SideSpec& spec, int sinks, bool values)
      : spec_(spec), sinks_(sinks), values_(values) {}

  int tier(int page, int n) const {
    const int last_row = sinks_ + page * kPageTokens + kPageTokens - 1;
    int out = 0;
    for (const TierSpec& tier : spec_.older) out += n - 1 - last_row > tier.age ? 1 : 0;
    return out;
  }

  // rows: all that were fed, of one head.
  std::vector<std::byte> bytes(ConstMat rows, int page, int tier) const {
    const int width = static_cast<int>(rows.cols);
    std::vector<float> now;
    for (int r = 0; r < kPageTokens; ++r) {
      const float* row = rows.row(sinks_ + page * kPageTokens + r);
      for (int c = 0; c < width; ++c) now.push_back(half_to_float(float_to_half(row[c])));
    }
    std::vector<std::byte> out;
    for (int t = 0; t <= tier; ++t) {
      const PageFormat format = page_format(spec_.codec_of(t), width, values_);
      out.assign(page_bytes(format), std::byte{0});
      std::vector<std::byte> scratch(encode_scratch(format));
      EXPECT_TRUE(
          encode_rows(format, now.data(), width, out.data(), 0, kPageTokens, scratch.data()));
      decode_rows(format, out.data(), 0, kPageTokens, 0, width, now.data(), width);
    }
    return out;
  }

 private:
  const SideSpec& spec_;
  int sinks_;
  bool values_;
};

const std::vector<LayerShape> kOneHead = {{1, 32, 64, 0}};

void expect_pages(const KvCache& cache, const TokenRows& tokens) {
  for (const bool values : {false, true}) {
    const PageOracle oracle(values ? cache.spec().v : cache.spec().k, cache.spec().sinks, values);
    const HeadView& head = cache.view(0)[0];
    const SideView& side = values ? head.v : head.k;
    const int n = cache.n_tokens();
    const ConstMat rows = values ? tokens.v(0, 0, n) : tokens.k(0, 0, n);
    for (size_t p = 0; p < side.pages.size(); ++p) {
      const PageView& page = side.pages[p];
      if (page.rows < kPageTokens) {
        ASSERT_EQ(page.basis, 0);
        continue;
      }
      const int tier = oracle.tier(static_cast<int>(p), n);
      ASSERT_EQ(page.basis % side.n_tiers(), tier) << p << " of " << n << " tokens";
      const std::vector<std::byte> wanted = oracle.bytes(rows, static_cast<int>(p), tier);
      ASSERT_EQ(static_cast<size_t>(page.bytes), wanted.size());
      ASSERT_EQ(std::memcmp(page.data, wanted.data(), wanted.size()), 0) << p;
    }
  }
}

const char* const kSpecs[] = {
    "int8+int4:older=100+int2:older=300", "q8_0:tail=3,sinks=5+q4_0:older=64",
    "k=int5:per=channel,group=64,tail=10,sinks=2+k=int3:per=channel,group=32,older=130+"
    "v=lm4:tail=0,channels=centred+v=lm2:older=1+v=lm1:older=500",
    "k=int4:per=channel,group=32,tail=64,seal=window+k=int2:per=channel,group=64,older=65+"
    "v=int4:tail=40,seal=row+v=int2:outliers=2%,group=64,older=200"};

TEST(Tiers, PagesAreCodedAnewAsTheyGrowOld) {
  SealOnlyBackend backend;
  const TokenRows tokens(kOneHead, 900, 3);
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    KvCache cache(CacheSpec::parse(spec), kOneHead);
    while (cache.n_tokens() < 900) {
      tokens.pass(&cache, backend, std::min(1 + cache.n_tokens() % 67, 900 - cache.n_tokens()));
      expect_pages(cache, tokens);
      if (testing::Test::HasFatalFailure()) return;
      ASSERT_EQ(cache.stats().bytes, cache.memory().live());
    }
  }
}

TEST(Tiers, WhatIsHeldDoesNotDependOnHowTokensCame) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> shapes = {{2, 32, 64, 0}, {1, 64, 32, 90}};
  const TokenRows tokens(shapes, 900, 4);
  for (const char* spec :
       {kSpecs[0], kSpecs[2], "hadamard+int8+int4:older=100",
        "klt:fit=128+int4:per=channel,group=64,sinks=3+int2:per=channel,group=64,older=99",
        "mpo:segment=128+sym8+sym4:older=200"}) {
    SCOPED_TRACE(spec);
    KvCache whole(CacheSpec::parse(spec), shapes);
    tokens.pass(&whole, backend, 900);
    for (const int step : {1, 64, 257}) {
      KvCache cache(CacheSpec::parse(spec), shapes);
      while (cache.n_tokens() < 900) {
        tokens.pass(&cache, backend, std::min(step, 900 - cache.n_tokens()));
      }
      // A layer with a window has dropped other pages, so the first is compared alone.
      ASSERT_EQ(read_rows(cache, 0, 1, false), read_rows(whole, 0, 1, false)) << step;
      ASSERT_EQ(read_rows(cache, 0, 0, true), read_rows(whole, 0, 0, true)) << step;
    }
  }
}

// Between the tokens that tokens_until_seal() names, no page changes.
TEST(Tiers, TokensUntilAPageGoesDown) {
  SealOnlyBackend backend;
  const TokenRows tokens(kOneHead, 700, 5);
  for (const char* spec : kSpecs) {
    KvCache cache(CacheSpec::parse(spec), kOneHead);
    const auto numbers = [&] {
      std::vector<int> out;
      for (const PageView& page : cache.view(0)[0].k.pages) out.push_back(page.basis);
      for (const PageView& page : cache.view(0)[0].v.pages) out.push_back(page.basis);
      return out;
    };
    int until = cache.tokens_until_seal();
    while (cache.n_tokens() < 700) {
      const std::vector<int> before = numbers();
      tokens.pass(&cache, backend, 1);
      --until;
      const int next = cache.tokens_until_seal();
      ASSERT_GE(next, 1);
      if (until > 0) {
        ASSERT_EQ(numbers(), before) << spec << ", " << cache.n_tokens();
        ASSERT_EQ(next, until);
      }
      until = next;
    }
  }
}

TEST(Tiers, ForksKeepTheirPages) {
  SealOnlyBackend backend;
  const TokenRows tokens(kOneHead, 900, 6);
  KvCache cache(CacheSpec::parse(kSpecs[0]), kOneHead);
  tokens.pass(&cache, backend, 400);
  KvCache fork = cache.fork();
  const std::vector<std::byte> before = fork.save();
  tokens.pass(&cache, backend, 400);
  expect_pages(cache, tokens);
  EXPECT_EQ(fork.save(), before);
  tokens.pass(&fork, backend, 400);
  EXPECT_EQ(fork.save(), cache.save());
  const int64_t both = cache.memory().live();
  {
    const KvCache gone = std::move(fork);
  }
  EXPECT_LT(cache.memory().live(), both);
  EXPECT_EQ(cache.stats().bytes, cache.memory().live());
}

// Rows of an old page return to the tail as the page shows them, and go on from there.
TEST(Tiers, GoingBackIntoAnOldPage) {
  SealOnlyBackend backend;
  const TokenRows tokens(kOneHead, 1100, 7);
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    for (const int n : {700, 129, 128, 127, 100, 70, 64, 8}) {
      KvCache cache(CacheSpec::parse(spec), kOneHead);
      tokens.pass(&cache, backend, 800);
      std::vector<float> before = read_rows(cache, 0, 0, true);
      cache.truncate(n);
      before.resize(static_cast<size_t>(n) * 64);
      const std::vector<float> after = read_rows(cache, 0, 0, true);
      for (size_t i = 0; i < after.size(); ++i) {
        ASSERT_NEAR(after[i], before[i], std::abs(before[i]) / 1024 + 1e-6f) << n;
      }
      ASSERT_EQ(cache.stats().bytes, cache.memory().live());
      for (const PageView& page : cache.view(0)[0].v.pages) {
        ASSERT_TRUE(page.rows == kPageTokens || page.basis == 0);
      }
      KvCache restored(cache.spec(), kOneHead);
      restored.load(cache.save());
      EXPECT_EQ(restored.save(), cache.save());
      tokens.pass(&cache, backend, 300);
      tokens.pass(&restored, backend, 300);
      ASSERT_EQ(cache.save(), restored.save());
    }
  }
}

// Full pages of a tier.
int count_tier(const SideView& side, int tier) {
  int n = 0;
  for (const PageView& page : side.pages) {
    n += page.rows == kPageTokens && page.basis % side.n_tiers() == tier ? 1 : 0;
  }
  return n;
}

void fill_to_the_limit(KvCache* cache, const TokenRows& tokens, Backend& backend, int64_t limit,
                       int step) {
  const int64_t peak = std::max(limit, cache->memory().peak());
  cache->limit_memory(limit);
  try {
    while (cache->n_tokens() < 20000) {
      tokens.pass(cache, backend, step);
      ASSERT_LE(cache->memory().live(), limit);
      ASSERT_LE(cache->memory().peak(), peak);
      // Forks have bytes too.
      ASSERT_LE(cache->stats().bytes, cache->memory().live());
    }
  } catch (const CapacityError& error) {
    EXPECT_TRUE(contains(error.what(), "memory limit of ")) << error.what();
    cache->rollback();
  }
}

TEST(Tiers, PagesGoDownBeforeMemoryRunsOut) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> shapes = {{2, 32, 64, 0}, {1, 64, 32, 0}};
  const TokenRows tokens(shapes, 20000, 8);
  for (const char* spec : {"int8+int4:older=2000+int2:older=8000", "hadamard+int8+lm2:older=900000",
                           "klt:fit=64+int6:per=channel,group=64+int2:per=channel,group=64,"
                           "older=1000000"}) {
    for (const int step : {1, 100}) {
      SCOPED_TRACE(spec);
      constexpr int64_t kLimit = 400'000;
      KvCache cache(CacheSpec::parse(spec), shapes);
      fill_to_the_limit(&cache, tokens, backend, kLimit, step);
      CacheSpec young = cache.spec();
      young.k.older.clear();
      young.v.older.clear();
      KvCache plain(young, shapes);
      fill_to_the_limit(&plain, tokens, backend, kLimit, step);
      EXPECT_GT(cache.n_tokens(), plain.n_tokens() * 5 / 4);
      // Only when every page is in its last tier is there an error.
      for (int layer = 0; layer < 2; ++layer) {
        for (const HeadView& head : cache.view(layer)) {
          for (const SideView* side : {&head.k, &head.v}) {
            int below = 0;
            for (int tier = 0; tier + 1 < side->n_tiers(); ++tier) below += count_tier(*side, tier);
            EXPECT_EQ(below, 0);
          }
        }
      }
    }
  }
}

// The ripest go first: while memory lasts for some pages of each tier, their numbers follow the
// ages.
TEST(Tiers, AgesShrinkTogetherUnderALimit) {
  SealOnlyBackend backend;
  const TokenRows tokens(kOneHead, 9000, 9);
  KvCache cache(CacheSpec::parse("int8+int4:older=100000+int2:older=300000"), kOneHead);
  cache.limit_memory(400'000);
  while (cache.n_tokens() < 6000) tokens.pass(&cache, backend, 50);
  const SideView& side = cache.view(0)[0].k;
  const int young = count_tier(side, 0);
  const int middle = count_tier(side, 1);
  EXPECT_GT(young, 5);
  // Ages of 1 and 3 parts: the middle tier spans two parts, the first one.
  EXPECT_NEAR(middle, 2 * young, 4);
  EXPECT_GT(count_tier(side, 2), 0);
  int last = 2;
  for (const PageView& page : side.pages) {
    EXPECT_LE(page.basis, last);
    last = page.basis;
  }
}

// What other lists show cannot be freed.
TEST(Tiers, SharedPagesStayUnderALimit) {
  SealOnlyBackend backend;
  const TokenRows tokens(kOneHead, 3000, 10);
  KvCache cache(CacheSpec::parse("int8+int2:older=100000"), kOneHead);
  tokens.pass(&cache, backend, 600);
  const KvCache fork = cache.fork();
  const std::vector<std::byte> before = fork.save();
  const int64_t limit = cache.memory().live() + 60'000;
  fill_to_the_limit(&cache, tokens, backend, limit, 10);
  EXPECT_EQ(fork.save(), before);
  const SideView& side = cache.view(0)[0].k;
  EXPECT_EQ(count_tier(side, 0), fork.view(0)[0].k.pages.size());
  EXPECT_GT(count_tier(side, 1), 5);
}

}  // namespace
}  // namespace kve
