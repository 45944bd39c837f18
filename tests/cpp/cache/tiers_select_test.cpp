// Codecs by age in caches that drop tokens: a token's age is what its position lies behind the
// newest, whatever went between them.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cache/select_testing.h"

namespace kve {
namespace {

// Every page of every head must be in the tier of its youngest row. Returns how many are of each.
std::vector<int> expect_tiers(const KvCache& cache, bool values) {
  const SideSpec& spec = values ? cache.spec().v : cache.spec().k;
  std::vector<int> count(static_cast<size_t>(spec.n_tiers()));
  const int newest = cache.next_position() - 1;
  for (size_t layer = 0; layer < cache.layers().size(); ++layer) {
    for (const HeadView& head : cache.view(static_cast<int>(layer))) {
      const SideView& side = values ? head.v : head.k;
      int row = side.sink_rows;
      for (const PageView& page : side.pages) {
        row += page.rows;
        int expected = 0;
        for (const TierSpec& tier : spec.older) {
          expected += newest - position_of(head, row - 1) > tier.age ? 1 : 0;
        }
        if (page.rows < kPageTokens) expected = 0;
        EXPECT_EQ(page.basis % side.n_tiers(), expected) << "rows before " << row;
        ++count[static_cast<size_t>(page.basis % side.n_tiers())];
      }
    }
  }
  return count;
}

TEST(TiersOfSelectors, PagesGoDownByTheirPositions) {
  const auto backend = make_cpu_backend(2, "");
  for (const char* text :
       {"snapkv:keep=0.5,window=16+int8:tail=10+int4:older=150+int2:older=400",
        "snapkv:keep=0.5,window=16+best4+best2:older=200",
        "knorm:keep=0.5,interval=40+hadamard+int8:tail=1,sinks=4+int4:older=90",
        "h2o:keep=350,interval=1,prompt=chunked+k=int8:tail=2+k=int3:older=130+v=q8_0",
        "adakv:score=knorm,keep=0.4+lm4:tail=5+lm2:older=100",
        "streaming:keep=350,interval=30,positions=reassigned+int8:tail=3+int4:older=100",
        "quest:budget=64+int8:tail=3+int4:older=100"}) {
    SCOPED_TRACE(text);
    const TokenRows tokens(select_shapes(2), 1000, 21);
    KvCache cache(CacheSpec::parse(text), select_shapes(2));
    read_tokens(tokens, &cache, *backend, 500, true);
    read_tokens(tokens, &cache, *backend, 200);
    std::vector<int> count = expect_tiers(cache, false);
    expect_tiers(cache, true);
    EXPECT_GT(count[1], 0);
    for (int i = 0; i < 150; ++i) {
      // Nothing may come between tokens that are read together.
      ASSERT_GE(cache.tokens_until_seal(), 1);
      read_tokens(tokens, &cache, *backend, 1);
      if (i % 10 == 0) expect_tiers(cache, false);
      if (i % 10 == 0) expect_tiers(cache, true);
    }
    EXPECT_EQ(cache.stats().bytes, cache.memory().live());
  }
}

TEST(TiersOfSelectors, OlderPagesTakeFewerBytes) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(2), 1000, 22);
  const auto codes = [&](const char* text) {
    KvCache cache(CacheSpec::parse(text), select_shapes(2));
    read_tokens(tokens, &cache, *backend, 1000);
    return cache.stats().codes;
  };
  const int64_t one = codes("knorm:keep=512+int8:tail=1");
  const int64_t two = codes("knorm:keep=512+int8:tail=1+int4:older=1");
  // 512 rows are 8 pages, of which at most the last is young.
  EXPECT_LE(static_cast<double>(two), (7 * 0.5 + 1) / 8 * static_cast<double>(one));
  EXPECT_GE(2 * two, one);
  EXPECT_LT(codes("knorm:keep=512+int8:tail=1+int4:older=500"), one);
  EXPECT_GT(codes("knorm:keep=512+int8:tail=1+int4:older=500"), two);
}

TEST(TiersOfSelectors, StatesForksAndPassesKeepThem) {
  const auto backend = make_cpu_backend(2, "");
  const TokenRows tokens(select_shapes(2), 700, 23);
  const char* text = "snapkv:keep=0.5,window=16+best4+best2:older=150";
  KvCache cache(CacheSpec::parse(text), select_shapes(2));
  read_tokens(tokens, &cache, *backend, 500);
  KvCache loaded(cache.spec(), select_shapes(2));
  loaded.load(cache.save());
  EXPECT_EQ(loaded.save(), cache.save());
  KvCache fork = cache.fork();
  for (int i = 0; i < 100; ++i) {
    const std::vector<float> out = read_tokens(tokens, &cache, *backend, 1);
    EXPECT_EQ(read_tokens(tokens, &loaded, *backend, 1), out);
  }
  // As many together as may be.
  while (fork.n_tokens() < 600) {
    const int n = std::min({8, 600 - fork.n_tokens(), fork.tokens_until_seal()});
    read_tokens(tokens, &fork, *backend, n);
  }
  EXPECT_EQ(loaded.save(), cache.save());
  EXPECT_EQ(fork.save(), cache.save());
}

// Under a limit the oldest pages go down before it is their time.
TEST(TiersOfSelectors, GoDownWhenMemoryRunsOut) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(2), 1200, 24);
  KvCache cache(CacheSpec::parse("knorm:keep=0.9,interval=1000+int8:tail=1+int2:older=1000000"),
                select_shapes(2));
  read_tokens(tokens, &cache, *backend, 600);
  EXPECT_EQ(expect_tiers(cache, false)[1], 0);
  cache.limit_memory(cache.memory().live());
  for (int i = 0; i < 200; ++i) read_tokens(tokens, &cache, *backend, 1);
  int low = 0;
  for (const PageView& page : cache.view(0)[0].k.pages) low += page.basis;
  EXPECT_GT(low, 0);
}

// Decodes under a limit of so many bytes more than a prompt takes, past a selection that makes the
// sides anew; false when memory does not suffice. No row may be lost or doubled.
bool selects_within(int64_t extra) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(2), 1200, 25);
  KvCache cache(CacheSpec::parse("h2o:keep=300,interval=40+int8:tail=64+int2:older=1000000"),
                select_shapes(2));
  read_tokens(tokens, &cache, *backend, 600);
  cache.limit_memory(cache.memory().live() + extra);
  bool fits = true;
  for (int i = 0; i < 130 && fits; ++i) {
    try {
      read_tokens(tokens, &cache, *backend, 1);
    } catch (const CapacityError&) {
      cache.rollback();
      fits = false;
    }
    for (const HeadView& head : cache.view(0)) {
      for (const SideView* side : {&head.k, &head.v}) {
        int rows = side->sink_rows + side->tail_rows;
        for (const PageView& page : side->pages) rows += page.rows;
        EXPECT_EQ(rows, head.n_rows) << "after " << i << " tokens";
      }
    }
  }
  return fits;
}

// Around what just suffices, where a selection, or the pages of sides made anew, do not fit at
// first.
TEST(TiersOfSelectors, SelectionsUnderALimitKeepTheirRows) {
  int64_t enough = 1'000'000;
  ASSERT_TRUE(selects_within(enough));
  for (int64_t too_little = 0; enough - too_little > 500;) {
    const int64_t middle = (too_little + enough) / 2;
    (selects_within(middle) ? enough : too_little) = middle;
  }
  for (int64_t less = 0; less < 20'000; less += 500) {
    SCOPED_TRACE(less);
    selects_within(enough - less);
  }
}

}  // namespace
}  // namespace kve
