#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "cache/cache_testing.h"
#include "cache/registry.h"

namespace kve {
namespace {

// Two layers of different shapes; 192 + 96 values per token.
std::vector<LayerShape> shapes() { return {{2, 32, 64, 0}, {1, 64, 32, 0}}; }
constexpr int kSides = 6;

TEST(KvCache, RefusesShapesThatTheSpecDoesNotFit) {
  const auto make = [](const char* spec, LayerShape shape) {
    return message_of([&] { KvCache(CacheSpec::parse(spec), {{1, 64, 64, 0}, shape}); });
  };
  const std::string group = make("int4:group=64", {1, 80, 64, 0});
  EXPECT_TRUE(contains(group, "int4:group=64,tail=64 does not fit layer 1: key_dim 80")) << group;
  EXPECT_TRUE(contains(group, "8, 16")) << group;
  EXPECT_TRUE(contains(make("k=f16+v=q8_0", {1, 80, 80, 0}), "value_dim 80 is not a multiple"));
  EXPECT_TRUE(contains(make("q4_0", {1, 20, 64, 0}), "no group divides it"));
  EXPECT_TRUE(contains(make("v=hadamard+v=int4:group=head", {1, 64, 33, 0}),
                       "layer 1: value_dim 33 is odd, so hadamard leaves every value as it is"));
  EXPECT_NO_THROW(KvCache(CacheSpec::parse("v=rotation+v=int4:group=head"), {{1, 64, 33, 0}}));
  EXPECT_TRUE(contains(make("f16", {0, 64, 64, 0}), "n_kv_heads: expected 1 to 65536, found 0"));
  EXPECT_TRUE(contains(make("f16", {1, 64, 0, 0}), "value_dim"));
  EXPECT_TRUE(contains(make("f16", {1, 1 << 17, 64, 0}), "key_dim"));
  EXPECT_TRUE(contains(make("f16", {1, 64, 64, -1}), "window"));
  CacheSpec odd = CacheSpec::parse("int4");
  odd.k.codec.group = 24;
  EXPECT_THROW(KvCache(odd, {{1, 96, 96, 0}}), ConfigError);
  odd = CacheSpec::parse("int4");
  odd.k.tail = -1;
  EXPECT_THROW(KvCache(odd, {{1, 96, 96, 0}}), ConfigError);
}

void check_bytes(const CacheSpec& spec, Backend& backend) {
  Random random(5);
  KvCache cache(spec, shapes());
  const auto check = [&] {
    const CacheStats stats = cache.stats();
    EXPECT_EQ(stats.bytes, cache.memory().live());
    EXPECT_EQ(stats.codes + stats.scales + stats.bases + stats.tail + stats.meta, stats.bytes);
    EXPECT_GE(stats.peak_bytes, stats.bytes);
    EXPECT_EQ(stats.f16_bytes, int64_t{288} * 2 * cache.n_tokens());
  };
  check();
  for (const int n : {1, 130, 1, 300}) {
    run_pass(&cache, backend, &random, n);
    check();
  }
  cache.truncate(150);
  check();
  append_pass(&cache, backend, &random, 90);
  check();
  cache.rollback();
  check();
}

// For every codec, group and tail, before and after everything that moves rows: the parts are the
// bytes that the allocator counts.
TEST(KvCache, BytesAreThoseOfTheAllocatorForEveryCombination) {
  SealOnlyBackend backend;
  int combinations = 0;
  for (const CodecEntry& entry : cache_codecs()) {
    for (const int tail : {0, 1, 63, 64, 65, 200}) {
      for (const int group : {8, 16, 32, kWholeHead, kWholeRow}) {
        if (entry.spec.is_float() && tail > 0) continue;
        if (!entry.is_free && group != 8) continue;
        CacheSpec spec;
        spec.k.codec = entry.spec;
        spec.k.tail = tail;
        if (entry.is_free) spec.k.codec.group = group;
        spec.v = spec.k;
        SCOPED_TRACE(spec.str());
        check_bytes(spec, backend);
        ++combinations;
      }
    }
  }
  EXPECT_EQ(combinations, 3 + 6 * 6 + 20 * 6 * 5);
}

TEST(KvCache, CodesAndScalesAreThoseOfTheFormat) {
  SealOnlyBackend backend;
  Random random(1);
  KvCache cache(CacheSpec::parse("int4:tail=64"), shapes());
  run_pass(&cache, backend, &random, 1024 + 64);
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.codes, 1024 * 288 / 2);
  EXPECT_EQ(stats.scales, 1024 * 288 / 32 * 4);
  EXPECT_EQ(stats.tail, 64 * 288 * 2);
  EXPECT_EQ(stats.spec, "int4:group=32,tail=64");
  EXPECT_EQ(stats.tokens_seen, 1088);
  EXPECT_EQ(stats.tokens_kept, 1088);
  EXPECT_DOUBLE_EQ(stats.bits_per_value,
                   16.0 * static_cast<double>(stats.bytes) / static_cast<double>(stats.f16_bytes));
  EXPECT_EQ(KvCache(CacheSpec::parse("f16"), shapes()).stats().bits_per_value, 0);
}

// 5 bits against 16 are a ratio of 3.2; tail and tables take a little of it at this length.
TEST(KvCache, Int4IsThreeTimesSmallerThanF16) {
  SealOnlyBackend backend;
  Random random(2);
  const auto bytes = [&](const char* spec) {
    KvCache cache(CacheSpec::parse(spec), {{2, 64, 64, 0}, {2, 64, 64, 0}});
    for (int i = 0; i < 16; ++i) run_pass(&cache, backend, &random, 256);
    EXPECT_GT(cache.stats().bytes, 0);
    return static_cast<double>(cache.stats().bytes);
  };
  const double f16 = bytes("f16");
  // Pages and tables add less than a percent to the plain rows: 4096 tokens of 512 values.
  EXPECT_GE(f16, 4096.0 * 512 * 2);
  EXPECT_LE(f16, 4096.0 * 512 * 2 * 1.01);
  EXPECT_GT(f16 / bytes("int4:tail=0"), 3.15);
  EXPECT_GT(f16 / bytes("int4:tail=64"), 2.9);
  EXPECT_GT(f16 / bytes("q8_0"), 1.86);
}

TEST(KvCache, NonFiniteValuesAreLocatedAndUndone) {
  SealOnlyBackend backend;
  for (const char* spec : {"f32", "f16", "bf16", "q8_0", "int4", "int8:tail=0"}) {
    SCOPED_TRACE(spec);
    Random random(3);
    KvCache cache(CacheSpec::parse(spec), shapes());
    run_pass(&cache, backend, &random, 100);
    const std::vector<std::byte> before = cache.save();
    std::vector<float> k = random_values(&random, 5 * 64);
    std::vector<float> v = random_values(&random, 5 * 128);
    v[3 * 128 + 64 + 7] = std::numeric_limits<float>::quiet_NaN();
    const std::string nan = message_of<Error>(
        [&] { cache.append(backend, 0, ConstMat(k.data(), 5, 64), ConstMat(v.data(), 5, 128)); });
    EXPECT_EQ(nan,
              "layer 0, kv head 1, values, token 103: expected finite values, found NaN in "
              "channel 7");
    k[0] = -std::numeric_limits<float>::infinity();
    const std::string inf = message_of<Error>(
        [&] { cache.append(backend, 0, ConstMat(k.data(), 5, 64), ConstMat(v.data(), 5, 128)); });
    EXPECT_TRUE(contains(inf, "layer 0, kv head 0, keys, token 100:")) << inf;
    EXPECT_TRUE(contains(inf, "infinity in channel 0")) << inf;
    // The layer is as before: the same pass succeeds with good values.
    EXPECT_EQ(cache.rows(0), 100);
    cache.rollback();
    EXPECT_EQ(cache.save(), before);
    run_pass(&cache, backend, &random, 5);
    EXPECT_EQ(cache.n_tokens(), 105);
  }
}

TEST(KvCache, RollbackRestoresTheStateExactly) {
  SealOnlyBackend backend;
  for (const char* spec : {"f16", "q8_0", "int4", "k=int4+v=q4_0"}) {
    SCOPED_TRACE(spec);
    Random random(4);
    KvCache cache(CacheSpec::parse(spec), shapes());
    for (const int n : {0, 1, 63, 64, 65, 190}) {
      run_pass(&cache, backend, &random, n);
      const std::vector<std::byte> before = cache.save();
      const CacheStats held = cache.stats();
      for (const int m : {1, 64, 400}) {
        append_pass(&cache, backend, &random, m);
        EXPECT_EQ(cache.rows(1), cache.n_tokens() + m);
        cache.rollback();
        EXPECT_EQ(cache.save(), before);
      }
      // Only longer tables, and some room in the tail, may stay.
      const CacheStats now = cache.stats();
      EXPECT_EQ(now.codes, held.codes);
      EXPECT_LE(now.tail, held.tail + 32 * 288 * 2);
      EXPECT_LE(now.meta - held.meta, kSides * 400);
    }
  }
}

TEST(KvCache, FailedCommitRestoresTheStateExactly) {
  SealOnlyBackend backend;
  Random random(5);
  KvCache cache(CacheSpec::parse("int4"), shapes());
  run_pass(&cache, backend, &random, 150);
  cache.truncate(40);  // an open page, which sealing would fill
  const std::vector<std::byte> before = cache.save();
  append_pass(&cache, backend, &random, 300);
  backend.fail_next = true;
  EXPECT_THROW(cache.commit(backend, 300), DeviceError);
  EXPECT_EQ(cache.n_tokens(), 40);
  EXPECT_EQ(cache.save(), before);
  EXPECT_EQ(cache.stats().bytes, cache.memory().live());
  run_pass(&cache, backend, &random, 300);
  EXPECT_EQ(cache.n_tokens(), 340);
}

TEST(KvCache, NewestTokensStayExactInF16) {
  SealOnlyBackend backend;
  for (const int tail : {1, 64, 100}) {
    KvCache cache(CacheSpec::parse("int4:tail=" + std::to_string(tail)), {{1, 32, 32, 0}});
    // Multiples of 1/8 in [-2, 2): exact in f16, inexact in 4 bits of a group of 32.
    Random random(6);
    std::vector<float> all;
    for (int step = 0; step < 300; ++step) {
      std::vector<float> row(32);
      for (float& x : row) x = static_cast<float>(static_cast<int>(random.bits() % 32) - 16) / 8;
      all.insert(all.end(), row.begin(), row.end());
      const ConstMat m(row.data(), 1, 32);
      cache.append(backend, 0, m, m);
      cache.commit(backend, 1);
      const HeadView& view = cache.view(0)[0];
      ASSERT_GE(view.k.tail_rows, std::min(step + 1, tail));
      ASSERT_LT(view.k.tail_rows, tail + kPageTokens);
    }
    std::vector<float> keys(300 * 32);
    cache.read_keys(0, 0, Mat(keys.data(), 300, 32));
    const size_t exact_from = static_cast<size_t>(300 - tail) * 32;
    EXPECT_TRUE(std::equal(keys.begin() + static_cast<std::ptrdiff_t>(exact_from), keys.end(),
                           all.begin() + static_cast<std::ptrdiff_t>(exact_from)));
    EXPECT_NE(keys, all);
  }
}

// A chunk attends to its own coded rows, as in llama.cpp.
TEST(KvCache, EagerSidesAreCodedBeforeTheCommit) {
  SealOnlyBackend backend;
  Random random(7);
  KvCache cache(CacheSpec::parse("k=q4_0+v=int4"), {{1, 32, 32, 0}});
  const std::vector<float> rows = random_values(&random, 100 * 32);
  const ConstMat m(rows.data(), 100, 32);
  cache.append(backend, 0, m, m);
  const HeadView& view = cache.view(0)[0];
  EXPECT_EQ(view.n_rows, 100);
  EXPECT_EQ(view.k.pages.size(), 2u);
  EXPECT_EQ(view.k.tail_rows, 0);
  EXPECT_EQ(view.v.pages.size(), 0u);
  EXPECT_EQ(view.v.tail_rows, 100);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view.k.pages[0].data) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view.v.tail) % 64, 0u);
}

// A step allocates when it begins a page, a page, a longer table and a smaller tail per side and
// two lists of all sides, and when the tail takes its next 16 rows.
TEST(KvCache, DecodeStepsAllocateOnlyPages) {
  SealOnlyBackend backend;
  for (const char* spec : {"f16", "q8_0", "int4", "int4:tail=0", "int8:tail=300"}) {
    SCOPED_TRACE(spec);
    Random random(8);
    KvCache cache(CacheSpec::parse(spec), shapes());
    run_pass(&cache, backend, &random, 500);
    int allocating_steps = 0;
    for (int step = 0; step < 320; ++step) {
      const int64_t before = cache.memory().allocations();
      const size_t pages = cache.view(0)[0].k.pages.size();
      run_pass(&cache, backend, &random, 1);
      const int64_t made = cache.memory().allocations() - before;
      const bool new_page = cache.view(0)[0].k.pages.size() > pages;
      ASSERT_LE(made, new_page ? 3 * kSides + 2 : kSides) << "step " << step;
      allocating_steps += made > 0 ? 1 : 0;
    }
    const bool has_tail = cache.spec().k.tail > 0;
    EXPECT_LE(allocating_steps, has_tail ? 25 : 5);
    EXPECT_GE(allocating_steps, 5);
  }
}

TEST(KvCache, ChunksLeaveNoMemoryBehindInTheTail) {
  SealOnlyBackend backend;
  Random random(9);
  KvCache cache(CacheSpec::parse("int4"), shapes());
  run_pass(&cache, backend, &random, 2000);
  // 2000 = 30 * 64 + 80 rows.
  EXPECT_EQ(cache.stats().tail, 80 * 288 * 2);
  EXPECT_GE(cache.stats().peak_bytes, 2000 * 288 * 2);
  // A long tail takes memory as it fills, not at once.
  KvCache large(CacheSpec::parse("int4:tail=1000000"), shapes());
  run_pass(&large, backend, &random, 10);
  EXPECT_LE(large.stats().tail, 64 * 288 * 2);
}

TEST(KvCache, ForksShareFullPages) {
  SealOnlyBackend backend;
  Random random(10);
  KvCache cache(CacheSpec::parse("int4"), shapes());
  run_pass(&cache, backend, &random, 2000);
  const CacheStats one = cache.stats();
  ASSERT_EQ(cache.memory().live(), one.bytes);
  {
    KvCache branch = cache.fork();
    const CacheStats two = branch.stats();
    EXPECT_EQ(two.codes, one.codes);
    const int64_t grown = cache.memory().live() - one.bytes;
    EXPECT_LE(grown, two.tail + two.meta);
    EXPECT_LT(grown, one.codes / 3);
    run_pass(&branch, backend, &random, 100);
    EXPECT_EQ(cache.n_tokens(), 2000);
    EXPECT_EQ(branch.n_tokens(), 2100);
    EXPECT_GT(cache.memory().live(), one.bytes + grown);
  }
  EXPECT_EQ(cache.memory().live(), one.bytes);
}

TEST(KvCache, OpenPagesAreCopiedOnlyWhenWrittenTo) {
  SealOnlyBackend backend;
  Random random(11);
  KvCache cache(CacheSpec::parse("q8_0"), shapes());
  run_pass(&cache, backend, &random, 100);
  const std::vector<std::byte> before = cache.save();
  KvCache branch = cache.fork();
  const int64_t live = cache.memory().live();
  EXPECT_EQ(branch.view(0)[0].k.pages[1].data, cache.view(0)[0].k.pages[1].data);
  run_pass(&branch, backend, &random, 1);
  EXPECT_EQ(branch.view(0)[0].k.pages[0].data, cache.view(0)[0].k.pages[0].data);
  EXPECT_NE(branch.view(0)[0].k.pages[1].data, cache.view(0)[0].k.pages[1].data);
  // One page per side: 64 tokens of 288 values at 8.5 bits, and a reference count each.
  EXPECT_EQ(cache.memory().live() - live, 64 * 288 * 34 / 32 + kSides * 4);
  EXPECT_EQ(cache.save(), before);
  // The other side of the fork now owns its page alone and writes in place.
  const std::byte* page = cache.view(0)[0].k.pages[1].data;
  run_pass(&cache, backend, &random, 1);
  EXPECT_EQ(cache.view(0)[0].k.pages[1].data, page);
  // A full page that is shared and shown with fewer rows is copied as well.
  KvCache cut = cache.fork();
  cut.truncate(30);
  run_pass(&cut, backend, &random, 1);
  EXPECT_NE(cut.view(0)[0].k.pages[0].data, cache.view(0)[0].k.pages[0].data);
}

TEST(KvCache, ForksMayLiveInDifferentThreads) {
  SealOnlyBackend backend;
  Random random(12);
  KvCache cache(CacheSpec::parse("k=q8_0+v=int4"), shapes());
  run_pass(&cache, backend, &random, 200);
  const std::vector<std::byte> before = cache.save();
  {
    std::vector<KvCache> branches;
    for (int i = 0; i < 3; ++i) branches.push_back(cache.fork());
    std::vector<std::thread> threads;
    for (KvCache& branch : branches) {
      threads.emplace_back([&branch] {
        SealOnlyBackend own_backend;
        Random own_random(13);
        for (int i = 0; i < 40; ++i) {
          run_pass(&branch, own_backend, &own_random, 5);
          if (i % 10 == 9) branch.truncate(branch.n_tokens() - 70);
          const KvCache twig = branch.fork();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(branches[0].save(), branches[1].save());
  }
  EXPECT_EQ(cache.save(), before);
  EXPECT_EQ(cache.memory().live(), cache.stats().bytes);
}

TEST(KvCache, TruncateChecksItsArgument) {
  SealOnlyBackend backend;
  Random random(14);
  KvCache cache(CacheSpec::parse("f16"), shapes());
  run_pass(&cache, backend, &random, 10);
  EXPECT_TRUE(contains(message_of([&] { cache.truncate(11); }), "to 11 tokens, it holds 10"));
  EXPECT_TRUE(contains(message_of([&] { cache.truncate(-1); }), "-1"));
  EXPECT_FALSE(cache.can_truncate(11));
  EXPECT_TRUE(cache.can_truncate(10));
  cache.truncate(10);
  cache.truncate(0);
  EXPECT_EQ(cache.n_tokens(), 0);
  EXPECT_EQ(cache.stats().codes, 0);
}

// One layer sees everything, one only 100 positions.
TEST(KvCache, WindowLayersDropPagesOutOfReach) {
  SealOnlyBackend backend;
  for (const char* spec : {"f16", "int4", "k=q8_0+v=int4:tail=10"}) {
    SCOPED_TRACE(spec);
    Random random(15);
    KvCache cache(CacheSpec::parse(spec), {{1, 32, 32, 0}, {1, 32, 32, 100}});
    for (int pass = 0; pass < 40; ++pass) {
      run_pass(&cache, backend, &random, pass % 2 == 0 ? 1 : 49);
      const HeadView& view = cache.view(1)[0];
      ASSERT_EQ(view.first_pos + view.n_rows, cache.n_tokens());
      // The next token, and one window of tokens taken back, still find their windows.
      ASSERT_LE(view.first_pos, std::max(0, cache.n_tokens() - 200));
      ASSERT_LT(view.n_rows, 200 + 2 * kPageTokens);
      ASSERT_EQ(cache.rows(0), cache.n_tokens());
      ASSERT_EQ(cache.stats().bytes, cache.memory().live());
    }
    ASSERT_EQ(cache.n_tokens(), 1000);
    EXPECT_EQ(cache.stats().tokens_kept, 1000);
    const int first = cache.view(1)[0].first_pos;
    ASSERT_GE(first, 64 * 11);
    const int oldest = first + 100 - 1;  // the first token whose window is whole
    EXPECT_TRUE(cache.can_truncate(oldest));
    EXPECT_FALSE(cache.can_truncate(oldest - 1));
    const std::vector<std::byte> before = cache.save();
    EXPECT_TRUE(contains(message_of<CapacityError>([&] { cache.truncate(oldest - 1); }),
                         "cannot go back from 1000 to"));
    EXPECT_EQ(cache.save(), before);
    KvCache other(CacheSpec::parse(spec), {{1, 32, 32, 0}, {1, 32, 32, 100}});
    other.load(before);
    EXPECT_EQ(other.save(), before);
    EXPECT_EQ(other.view(1)[0].first_pos, first);
    cache.truncate(oldest);
    EXPECT_EQ(cache.rows(1), 99);
    run_pass(&cache, backend, &random, 3);
    cache.truncate(0);
    EXPECT_EQ(cache.view(1)[0].first_pos, 0);
    run_pass(&cache, backend, &random, 3);
    EXPECT_EQ(cache.rows(1), 3);
  }
}

}  // namespace
}  // namespace kve
