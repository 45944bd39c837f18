// What caches with bases, sinks and tails take, and what happens when there is no memory.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "cache/cache_testing.h"
#include "cache/registry.h"

namespace kve {
namespace {

std::vector<LayerShape> shapes() {
  const auto rotation = std::make_shared<Rotation>(Rotation{{1, 0.5, 0.25, 0.01}, false});
  return {{2, 32, 64, 0, rotation}, {1, 64, 32, 90, rotation}};
}

// Presets with shorter segments and fits, and combinations that no preset has.
const char* const kSpecs[] = {
    "kivi2",
    "flexgen4",
    "turbo3",
    "kvarn2",
    "best8",
    "mpo:block=16,segment=64+sym4:group=row,tail=0,prefill=exact",
    "mpo:block=8,segment=128+int4:tail=10,sinks=3",
    "lowrank:rank=16,segment=64+lm4:group=head,tail=5",
    "klt:fit=128+int3:per=channel,group=64,scale=log8,fit=search,tail=60,sinks=4",
    "k=klt:fit=64,anchor=1+k=nf4:group=32,tail=7,seal=row+v=rotation+v=e4m3",
    "k=hadamard+k=f16+v=klt:fit=64+v=f16",
    "k=mpo:segment=64+k=f16+v=bf16",
    "k=int3:per=channel,group=64,outliers=1%,tail=9+v=hadamard+v=lm2:outliers=10%,tail=0",
    "int2:tail=0+int4:heads=1,layers=0,tail=0+v=f16:heads=0",
    "int8:sinks=3+int4:older=100+int2:older=250",
    "klt:fit=128+int4:per=channel,group=64+int2:per=channel,group=64,older=99",
    "mpo:segment=64+sym8+sym4:older=200",
    "lowrank:rank=4,segment=64,residual=coded+int2:tail=3",
    "k=lowrank:rank=8,segment=128,residual=fitted,coefficients=int8+k=int3:per=channel,group=64+v="
    "f16"};

void check(const KvCache& cache) {
  const CacheStats stats = cache.stats();
  ASSERT_EQ(stats.bytes, cache.memory().live());
  ASSERT_EQ(stats.bytes, stats.codes + stats.scales + stats.bases + stats.tail + stats.meta);
  ASSERT_EQ(stats.tokens_seen, cache.n_tokens());
}

TEST(KvCacheMemory, StatedBytesAreThoseOfTheAllocator) {
  SealOnlyBackend backend;
  const TokenRows tokens(shapes(), 2000, 1);
  for (const char* text : kSpecs) {
    SCOPED_TRACE(text);
    KvCache cache(CacheSpec::parse(text), shapes());
    check(cache);
    const int64_t empty = cache.memory().live();
    for (const int n : {3, 1, 300, 64, 200, 1, 1, 1}) {
      tokens.append(&cache, backend, n);
      check(cache);
      cache.commit(backend, n);
      check(cache);
    }
    tokens.append(&cache, backend, 90);
    cache.rollback();
    check(cache);
    for (const int n : {560, 500, 490}) {
      cache.truncate(n);
      check(cache);
    }
    tokens.pass(&cache, backend, 100);
    check(cache);
    {
      const KvCache fork = cache.fork();
      EXPECT_LE(fork.stats().bytes, cache.memory().live());
    }
    check(cache);
    cache.truncate(0);
    check(cache);
    // Tables keep their length and tails some room: for 8 sides, less than a page of f16 each.
    EXPECT_LT(cache.memory().live() - empty, 8 * 64 * 64 * 2);
    tokens.pass(&cache, backend, 100);
    check(cache);
  }
}

TEST(KvCacheMemory, NothingIsLeftBehind) {
  SealOnlyBackend backend;
  const TokenRows tokens(shapes(), 400, 2);
  for (const char* text : kSpecs) {
    KvCache cache(CacheSpec::parse(text), shapes());
    const int64_t empty = cache.memory().live();
    {
      KvCache fork = cache.fork();
      tokens.pass(&fork, backend, 400);
      fork.truncate(333);
      const KvCache twig = fork.fork();
      EXPECT_GT(cache.memory().live(), 2 * empty);
    }
    EXPECT_EQ(cache.memory().live(), empty) << text;
  }
}

// Rows that are exact take little more than what they are: an eighth and 32 rows at most.
TEST(KvCacheMemory, TailsAreTight) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> one = {{2, 64, 64, 0}};
  const TokenRows tokens(one, 900, 3);
  for (const char* text : {"int4:tail=60,sinks=4", "kivi2", "int4:tail=300",
                           "k=klt:fit=512+k=int4:tail=60,sinks=4+v=lm4:group=head,tail=60",
                           "int4:tail=128,seal=row", "mpo:segment=256+sym4:group=row,tail=0"}) {
    SCOPED_TRACE(text);
    KvCache cache(CacheSpec::parse(text), one);
    while (cache.n_tokens() < 860) {
      tokens.pass(&cache, backend, cache.n_tokens() % 7 == 0 ? 33 : 1);
      int64_t rows = 0;
      for (const bool values : {false, true}) {
        const Held now = held(cache, values);
        rows += now.sinks + now.tail + 32 + now.tail / 8;
      }
      ASSERT_LE(cache.stats().tail, rows * 2 * 64 * 2) << cache.n_tokens();
    }
  }
}

// Bases of segments that are dropped, by a window or by going back, go.
TEST(KvCacheMemory, BasesGoWithTheirPages) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> windowed = {{2, 32, 32, 64}};
  const TokenRows tokens(windowed, 3000, 4);
  KvCache cache(CacheSpec::parse("mpo:segment=64+sym8:group=row,tail=0"), windowed);
  int64_t most = 0;
  for (int n = 0; n < 2900; n += 29) {
    tokens.pass(&cache, backend, 29);
    check(cache);
    if (n < 300) most = std::max(most, cache.stats().bases);
    EXPECT_LE(cache.stats().bases, most);
    const HeadView& head = cache.view(0)[1];
    for (const PageView& page : head.k.pages) {
      ASSERT_GE(page.basis, 0);
      ASSERT_LT(page.basis, 4);
    }
  }
  // 8 bits in a basis: what is read is still what was fed.
  const std::vector<float> found = read_rows(cache, 0, 1, true);
  const ConstMat fed = tokens.v(0, cache.view(0)[0].first_pos, cache.rows(0));
  for (size_t i = 0; i < found.size(); ++i) {
    const float exact = fed.row(static_cast<int64_t>(i / 32))[32 + i % 32];
    ASSERT_NEAR(found[i], exact, 0.03f) << i / 32;
  }
  const std::vector<LayerShape> unlimited = {{2, 32, 32, 0}};
  const TokenRows more(unlimited, 700, 5);
  KvCache all(CacheSpec::parse("lowrank:rank=32,segment=64+f16"), unlimited);
  for (int i = 0; i < 20; ++i) {
    more.pass(&all, backend, 300);
    all.truncate(64 + i);
    check(all);
    EXPECT_EQ(held(all, false), (Held{0, 64, i}));
    all.truncate(64);
  }
}

// A commit that fails leaves nothing of its queries behind: the basis is fitted to the same sums.
TEST(KvCacheMemory, FailedCommitsKeepNoQueries) {
  SealOnlyBackend backend;
  const TokenRows tokens(shapes(), 300, 6);
  const TokenRows others(shapes(), 300, 7);
  const CacheSpec spec = CacheSpec::parse("klt:fit=128+int4:tail=0");
  KvCache clean(spec, shapes());
  tokens.pass(&clean, backend, 40);
  tokens.pass(&clean, backend, 200);
  KvCache cache(spec, shapes());
  tokens.pass(&cache, backend, 40);
  const std::vector<std::byte> before = cache.save();
  others.append(&cache, backend, 200);
  backend.fail_next = true;
  EXPECT_THROW(cache.commit(backend, 200), DeviceError);
  EXPECT_EQ(cache.save(), before);
  others.append(&cache, backend, 10);
  cache.rollback();
  tokens.pass(&cache, backend, 200);
  EXPECT_EQ(cache.save(), clean.save());
}

// Every operation under every limit from what is held to what it needs: it throws and nothing has
// changed, or it is done.
template <class Operation>
void under_every_limit(const char* text, int held_tokens, const Operation& operation) {
  SCOPED_TRACE(text);
  SealOnlyBackend backend;
  const TokenRows tokens(shapes(), 900, 8);
  KvCache cache(CacheSpec::parse(text), shapes());
  tokens.pass(&cache, backend, held_tokens);
  const std::vector<std::byte> before = cache.save();
  const int64_t live = cache.memory().live();
  int refused = 0;
  for (int64_t extra = 0;; extra += 64 + extra / 16) {
    KvCache one = cache.fork();
    one.limit_memory(INT64_MAX);
    const std::vector<std::byte> same = one.save();
    one.limit_memory(one.memory().live() + extra);
    bool done = false;
    try {
      operation(&one, backend, tokens);
      done = true;
    } catch (const CapacityError& error) {
      EXPECT_TRUE(contains(error.what(), "memory limit of ")) << error.what();
      one.rollback();
    }
    one.limit_memory(INT64_MAX);
    if (done) break;
    ++refused;
    ASSERT_EQ(one.save(), same);
    // It goes on as if nothing had been.
    if (refused % 16 == 1) {
      KvCache two = cache.fork();
      tokens.pass(&one, backend, 70);
      tokens.pass(&two, backend, 70);
      ASSERT_EQ(one.save(), two.save());
    }
    ASSERT_LT(extra, 10'000'000);
  }
  EXPECT_GT(refused, 0);
  EXPECT_EQ(cache.save(), before);
  EXPECT_EQ(cache.memory().live(), live);
}

TEST(KvCacheMemory, PassesWithoutMemoryChangeNothing) {
  for (const char* text : kSpecs) {
    under_every_limit(text, 111, [](KvCache* cache, Backend& backend, const TokenRows& tokens) {
      tokens.pass(cache, backend, 200);
    });
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(KvCacheMemory, GoingBackWithoutMemoryChangesNothing) {
  for (const char* text : {"kivi2", "mpo:segment=64+sym4:group=row,tail=0",
                           "klt:fit=64+int4:per=channel,group=32,tail=0"}) {
    under_every_limit(text, 230,
                      [](KvCache* cache, Backend&, const TokenRows&) { cache->truncate(100); });
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(KvCacheMemory, ALimitIsForAllForks) {
  SealOnlyBackend backend;
  const TokenRows tokens(shapes(), 900, 9);
  KvCache cache(CacheSpec::parse("q8_0"), shapes());
  tokens.pass(&cache, backend, 100);
  cache.limit_memory(cache.memory().live() + 1000);
  EXPECT_THROW(cache.fork(), CapacityError);
  const std::string error = message_of<CapacityError>([&] { tokens.pass(&cache, backend, 300); });
  EXPECT_TRUE(contains(error, "memory limit of")) << error;
  cache.rollback();
  EXPECT_EQ(cache.n_tokens(), 100);
  cache.limit_memory(INT64_MAX);
  tokens.pass(&cache, backend, 300);
  check(cache);
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// What is dropped leaves the process, not only the counters.
TEST(KvCacheMemory, ResidentMemoryFallsWithADrop) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> shapes(8, LayerShape{4, 64, 64, 0, nullptr});
  KvCache cache(CacheSpec::parse("knorm:keep=0.125+int8"), shapes);
  Random random(1);
  // Passes of all layers in turn: rows of sides that go lie between those of sides that stay.
  for (int i = 0; i < 31; ++i) run_pass(&cache, backend, &random, 256, true);
  const int64_t live = cache.memory().live();
  const int64_t resident = resident_bytes();
  run_pass(&cache, backend, &random, 256);
  const int64_t freed = live - cache.memory().live();
  ASSERT_GT(freed, 50'000'000);
  // What the pass itself needs for a moment may stay with the allocator.
  EXPECT_GT(resident - resident_bytes(), freed - freed / 8);
}
#endif

}  // namespace
}  // namespace kve
