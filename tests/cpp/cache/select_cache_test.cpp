// Caches that drop tokens: attention, memory, going back, saving, failing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "cache/select_testing.h"

namespace kve {
namespace {

using Positions = std::vector<int32_t>;

// Attention of the n next tokens must be that over the rows which are there.
void check_attention(const TokenRows& tokens, KvCache* cache, Backend& backend, int n) {
  AttendParams params = select_params(cache->layers()[0].n_kv_heads);
  const int first = cache->n_tokens();
  const std::vector<float> found = attend_tokens(tokens, cache, backend, n);
  const int layer = static_cast<int>(cache->layers().size()) - 1;
  std::optional<ViewsOfQueries> own;
  if (cache->attends_apart(layer)) {
    own.emplace(*cache, layer, params.n_heads);
    params.n_kv_heads = params.n_heads;
  }
  const AttendTask task{tokens.q(static_cast<size_t>(layer), first, n),
                        own ? own->heads() : cache->view(layer), cache->next_position(), Mat()};
  const std::vector<double> expected = reference_attention(params, task);
  double worst = 0;
  double size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    worst = std::max(worst, std::abs(double{found[i]} - expected[i]));
    size = std::max(size, std::abs(expected[i]));
  }
  // As in kv_cache_attend_test.cpp: sums of a few hundred terms in f32.
  EXPECT_LT(worst / size, 3e-5) << n << " queries";
  cache->rollback();
}

const char* const kCombinations[] = {
    "h2o:keep=0.4,interval=1+f16",
    "snapkv:keep=0.5,window=16+think:ratio=0.4+int4",
    "adakv:keep=0.5,window=16+think:ratio=0.3,window=8+int8:tail=10",
    "h2o:keep=0.4,interval=9+think:ratio=0.25,window=8+f16",
    "snapkv:keep=0.4,window=16+hadamard+int4:tail=64",
    "snapkv:keep=0.4,window=16,interval=32+hadamard+int4:tail=0",
    "knorm:keep=0.3+kivi2",
    "knorm:keep=0.3,interval=10+kvarn4",
    "keydiff:keep=150+k=klt:fit=64+k=int3:per=channel,group=64,tail=5,sinks=4+v=lm4",
    "keydiff:keep=150,interval=7+k=klt:fit=64,anchor=1+k=int4:tail=5+v=q8_0",
    "expected:keep=0.3,interval=20+int8:group=row,tail=10,sinks=3",
    "expected:keep=0.3+mpo:segment=64+sym4:group=row,tail=0",
    "random:keep=0.5,interval=9+lowrank:rank=16,segment=64+lm4:tail=3",
    "adakv:keep=0.3,window=16+hadamard+int4:tail=10",
    "adakv:score=knorm,keep=0.3,alpha=0,interval=30+k=klt:fit=64+k=int4:tail=5+v=turbo4",
    "adakv:score=h2o,keep=0.3,interval=11+kivi4",
    "pyramidkv:keep=0.4,window=16,beta=4+best8",
    "tova:keep=100+turbo3",
    "streaming:keep=100+kivi2",
    "window:keep=100,interval=64+rotation+lm2:tail=30,seal=row",
    "h2o_realdrop:heavy=20,recent=60+int4:tail=0,prefill=exact",
    "h2o:keep=80,prompt=chunked,interval=16+q4_0",
    "h2o_bench:keep=0.3+int4:tail=10",
    "streaming:keep=90,interval=30,positions=reassigned+k=klt:fit=64+k=int4:tail=0+v=lm4",
    "snapkv:keep=0.6,window=16+best4+best2:older=100",
    "h2o:keep=0.6,interval=16+int8:tail=10+int4:older=64+int2:older=128",
    "streaming:keep=250,interval=30,positions=reassigned+int8:tail=3+int4:older=70",
};

TEST(SelectCache, GoesWithEveryProjectorAndCodec) {
  const auto backend = make_cpu_backend(2, "");
  for (const char* text : kCombinations) {
    SCOPED_TRACE(text);
    const TokenRows tokens(select_shapes(2), 700, 11);
    KvCache cache(CacheSpec::parse(text), select_shapes(2));
    for (const int n : {150, 100, 50}) {
      check_attention(tokens, &cache, *backend, n);
      read_tokens(tokens, &cache, *backend, n, n != 50);
      EXPECT_EQ(cache.stats().bytes, cache.memory().live());
    }
    // The benchmark's H2O masks from the first step on.
    const bool masks = cache.spec().selector.kind == SelectorSpec::Kind::h2o_bench;
    EXPECT_EQ(cache.stats().tokens_kept < 300, !masks);
    for (int t = 0; t < 200; ++t) {
      if (t % 50 == 0) check_attention(tokens, &cache, *backend, 1);
      read_tokens(tokens, &cache, *backend, 1);
    }
    check_attention(tokens, &cache, *backend, 20);
    EXPECT_EQ(cache.stats().bytes, cache.memory().live());

    // Saved and loaded, forked, and read on: the same bits.
    KvCache loaded(CacheSpec::parse(text), select_shapes(2));
    loaded.load(cache.save());
    EXPECT_EQ(loaded.save(), cache.save());
    KvCache fork = cache.fork();
    for (const int n : {1, 40, 1, 1}) {
      const std::vector<float> expected = read_tokens(tokens, &cache, *backend, n);
      EXPECT_EQ(read_tokens(tokens, &loaded, *backend, n), expected) << n;
      EXPECT_EQ(read_tokens(tokens, &fork, *backend, n), expected) << n;
    }
    EXPECT_EQ(loaded.save(), cache.save());
    EXPECT_EQ(fork.save(), cache.save());
  }
}

TEST(SelectCache, ChunksAndThreadsMakeNoDifference) {
  for (const char* text :
       {"h2o:keep=60", "snapkv:keep=60,window=16,interval=16+int4", "expected:keep=0.3+q8_0",
        "adakv:score=observed,keep=0.25,recent=4,interval=8+hadamard+int4:tail=20"}) {
    SCOPED_TRACE(text);
    const TokenRows tokens(select_shapes(2), 300, 5);
    std::vector<std::vector<Positions>> kept;
    for (const int n_threads : {1, 2}) {
      for (const std::vector<int>& chunks : {std::vector<int>{200}, {100, 100}, {3, 60, 130, 7}}) {
        const auto backend = make_cpu_backend(n_threads, "");
        KvCache cache(CacheSpec::parse(text), select_shapes(2));
        int left = 200;
        for (const int n : chunks) read_tokens(tokens, &cache, *backend, n, (left -= n) > 0);
        for (int t = 0; t < 50; ++t) read_tokens(tokens, &cache, *backend, 1);
        auto& found = kept.emplace_back();
        for (const int layer : {0, 1}) {
          for (const int head : {0, 1}) found.push_back(kept_positions(cache, layer, head));
        }
        EXPECT_EQ(found, kept[0]);
      }
    }
  }
}

TEST(SelectCache, SpeculatedTokensThatAreRejectedDoNotVote) {
  const auto backend = make_cpu_backend(1, "");
  for (const char* text : {"h2o:keep=60,interval=16", "snapkv:keep=60,window=16,interval=16",
                           "expected:keep=60,interval=16"}) {
    SCOPED_TRACE(text);
    const TokenRows tokens(select_shapes(1), 300, 3);
    KvCache one(CacheSpec::parse(text), select_shapes(1));
    KvCache ahead(CacheSpec::parse(text), select_shapes(1));
    read_tokens(tokens, &one, *backend, 150);
    read_tokens(tokens, &ahead, *backend, 150);
    for (int done = 0; done < 90;) {
      const int n = std::min(4, ahead.tokens_until_seal());
      attend_tokens(tokens, &ahead, *backend, n);
      const int accepted = std::min(n, 1 + done % 3);
      for (int i = 0; i < accepted; ++i) {
        ahead.commit(*backend, 1);
        read_tokens(tokens, &one, *backend, 1);
      }
      ahead.rollback();
      done += accepted;
    }
    EXPECT_EQ(kept_positions(ahead, 0, 0), kept_positions(one, 0, 0));
    EXPECT_EQ(ahead.save(), one.save());
  }
}

TEST(SelectCache, MemoryIsFreedAndStaysFlat) {
  const auto backend = make_cpu_backend(2, "");
  const TokenRows tokens(select_shapes(2), 3000, 9);
  const auto bytes_of = [&](const std::string& spec, int n) {
    KvCache cache(CacheSpec::parse(spec), select_shapes(2));
    read_tokens(tokens, &cache, *backend, n / 2, true);
    read_tokens(tokens, &cache, *backend, n - n / 2);
    return static_cast<double>(cache.memory().live());
  };
  // Positions are 4 bytes a row beside 128 of keys and values in f16, and tables have some room.
  const double tail = 2 * 2 * 2 * 63 * kSelectDim * 2;
  EXPECT_LT(bytes_of("knorm:keep=0.25", 2048), 0.29 * bytes_of("f16", 2048) + tail);
  EXPECT_LT(bytes_of("knorm:keep=0.25+int4:tail=0", 2048),
            0.30 * bytes_of("int4:tail=0", 2048) + tail);
  for (const char* text : {"h2o:keep=128", "h2o:keep=128+int4:tail=32", "tova:keep=128+q8_0"}) {
    SCOPED_TRACE(text);
    KvCache cache(CacheSpec::parse(text), select_shapes(2));
    read_tokens(tokens, &cache, *backend, 300);
    int64_t most = 0;
    for (int t = 0; t < 400; ++t) {
      read_tokens(tokens, &cache, *backend, 1);
      most = std::max(most, cache.memory().live());
    }
    for (int t = 0; t < 2000; ++t) {
      read_tokens(tokens, &cache, *backend, 1);
      ASSERT_LE(cache.memory().live(), most);
      ASSERT_EQ(cache.rows(1, 1), 128);
    }
  }
}

TEST(SelectCache, RaggedBudgetsFreeWhatTheySay) {
  const auto backend = make_cpu_backend(2, "");
  const TokenRows tokens(select_shapes(1), 1000, 9);
  KvCache cache(CacheSpec::parse("adakv:score=knorm,keep=0.25,alpha=0.1"), select_shapes(1));
  read_tokens(tokens, &cache, *backend, 1000);
  EXPECT_EQ(cache.rows(0, 0) + cache.rows(0, 1), 500);
  EXPECT_NE(cache.rows(0, 0), cache.rows(0, 1));
  for (const int head : {0, 1}) {
    EXPECT_EQ(cache.view(0)[static_cast<size_t>(head)].n_rows, cache.rows(0, head));
  }
}

TEST(SelectCache, StreamingHeadsFreeTheirRows) {
  const auto backend = make_cpu_backend(2, "");
  const TokenRows tokens(select_shapes(2), 1200, 9);
  const std::string path = testing::TempDir() + "select_cache_gates.txt";
  std::ofstream(path) << "0.9 0.1\n0.2 0.8\n";
  KvCache cache(
      CacheSpec::parse("duo:gates=" + path + ",sinks=8,recent=56,interval=32+int4:tail=0"),
      select_shapes(2));
  std::remove(path.c_str());
  KvCache whole(CacheSpec::parse("int4:tail=0"), select_shapes(2));
  for (KvCache* each : {&cache, &whole}) read_tokens(tokens, each, *backend, 1000);
  for (int t = 0; t < 96; ++t) read_tokens(tokens, &cache, *backend, 1);
  EXPECT_EQ(cache.rows(0, 0), 1096);
  EXPECT_EQ(cache.rows(0, 1), 64);
  EXPECT_EQ(cache.rows(1, 0), 64);
  EXPECT_EQ(cache.rows(1, 1), 1096);
  EXPECT_LT(static_cast<double>(cache.memory().live()),
            0.75 * static_cast<double>(whole.memory().live()));
  check_attention(tokens, &cache, *backend, 4);
}

TEST(SelectCache, RefusesToGoBackIntoWhatIsGone) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 300, 9);
  KvCache cache(CacheSpec::parse("h2o:keep=50,interval=16+int4:tail=8"), select_shapes(1));
  read_tokens(tokens, &cache, *backend, 200);
  for (int t = 0; t < 20; ++t) read_tokens(tokens, &cache, *backend, 1);
  EXPECT_FALSE(cache.can_truncate(215));
  EXPECT_EQ(message_of<CapacityError>([&] { cache.truncate(100); }),
            "cache: cannot go back from 220 to 100 tokens: rows were dropped when 216 had been "
            "read");
  KvCache other = cache.fork();
  cache.truncate(216);
  EXPECT_EQ(cache.rows(0, 0), 50);
  for (int t = 0; t < 20; ++t) read_tokens(tokens, &cache, *backend, 1);
  EXPECT_EQ(cache.n_tokens(), 236);
  other.truncate(0);
  EXPECT_EQ(other.rows(0, 0), 0);
  read_tokens(tokens, &other, *backend, 200);
  KvCache fresh(CacheSpec::parse("h2o:keep=50,interval=16+int4:tail=8"), select_shapes(1));
  read_tokens(tokens, &fresh, *backend, 200);
  EXPECT_EQ(other.save(), fresh.save());
}

TEST(SelectCache, FailuresLeaveItAsItWas) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(2), 400, 9);
  for (const char* text : {"h2o:keep=50,interval=8+int4:tail=8", "snapkv:keep=80,window=16"}) {
    SCOPED_TRACE(text);
    KvCache cache(CacheSpec::parse(text), select_shapes(2));
    read_tokens(tokens, &cache, *backend, 200);
    const std::vector<std::byte> before = cache.save();
    int refused = 0;
    for (int64_t room = 0; room < 3'000'000; room += 1 + room / 3) {
      cache.limit_memory(cache.memory().live() + room);
      try {
        read_tokens(tokens, &cache, *backend, 60);
        break;
      } catch (const CapacityError&) {
        cache.rollback();
        ++refused;
        cache.limit_memory(INT64_MAX);
        ASSERT_EQ(cache.save(), before) << room;
      }
    }
    EXPECT_GT(refused, 3);
    EXPECT_EQ(cache.n_tokens(), 260);
  }
}

TEST(SelectCache, BasesAreFittedToWhatStays) {
  // A fit that waits for 512 rows would never come: the prompt leaves 250.
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 1200, 9);
  KvCache cache(CacheSpec::parse("knorm:keep=0.25+best4"), select_shapes(1));
  read_tokens(tokens, &cache, *backend, 500, true);
  EXPECT_EQ(held(cache, false), (Held{4, 0, 496}));
  read_tokens(tokens, &cache, *backend, 500);
  EXPECT_EQ(held(cache, false), (Held{4, 128, 118}));
  for (int t = 0; t < 20; ++t) read_tokens(tokens, &cache, *backend, 1);
  EXPECT_EQ(held(cache, false), (Held{4, 192, 74}));
  KvCache loaded(cache.spec(), select_shapes(1));
  loaded.load(cache.save());
  EXPECT_EQ(read_tokens(tokens, &loaded, *backend, 70), read_tokens(tokens, &cache, *backend, 70));
}

// Of the heads of a layer some are fitted to what they keep, others wait for more rows: they are
// coded on their own.
TEST(SelectCache, HeadsThatAreFittedLaterAreCodedInTheirBasis) {
  const auto backend = make_cpu_backend(2, "");
  const TokenRows tokens(select_shapes(1), 800, 21);
  bool differed = false;
  for (int keep = 66; keep <= 76; ++keep) {
    const std::string text = "adakv:score=knorm,keep=" + std::to_string(keep) +
                             ",alpha=0+k=klt:fit=64+k=int8:per=channel,group=64,tail=5+v=q8_0";
    SCOPED_TRACE(text);
    KvCache cache(CacheSpec::parse(text), select_shapes(1));
    read_tokens(tokens, &cache, *backend, 500);
    const auto is_fitted = [&](int head) { return cache.rows(0, head) >= 64 + 5; };
    differed = differed || is_fitted(0) != is_fitted(1);
    for (const int n : {200, 64}) read_tokens(tokens, &cache, *backend, n);
    KvCache loaded(cache.spec(), select_shapes(1));
    loaded.load(cache.save());
    for (int head = 0; head < 2; ++head) {
      const Positions positions = kept_positions(cache, 0, head);
      std::vector<float> keys(positions.size() * kSelectDim);
      cache.read_keys(0, head,
                      Mat(keys.data(), static_cast<int64_t>(positions.size()), kSelectDim));
      double error = 0;
      double size = 0;
      for (size_t r = 0; r < positions.size(); ++r) {
        const float* own = tokens.k(0, positions[r], 1).row(0) + head * kSelectDim;
        for (int c = 0; c < kSelectDim; ++c) {
          const double off = double{keys[r * kSelectDim + static_cast<size_t>(c)]} - double{own[c]};
          error += off * off;
          size += double{own[c]} * double{own[c]};
        }
      }
      // Codes of 8 bits of a channel's range are off by about 1 / 500 of it.
      EXPECT_LT(std::sqrt(error / size), 0.02) << "head " << head;
    }
  }
  EXPECT_TRUE(differed);
}

// What was read after a prompt did not vote, so going back into the prompt takes no votes of it.
TEST(SelectCache, GoingBackForgetsTheVotesOfThePromptOnly) {
  const auto backend = make_cpu_backend(2, "");
  const TokenRows tokens(select_shapes(2), 300, 8);
  const CacheSpec spec = CacheSpec::parse("snapkv:keep=95,window=16");
  KvCache back(spec, select_shapes(2));
  read_tokens(tokens, &back, *backend, 90);
  for (int t = 0; t < 50; ++t) read_tokens(tokens, &back, *backend, 1);
  back.truncate(85);
  KvCache fresh(spec, select_shapes(2));
  read_tokens(tokens, &fresh, *backend, 85, true);
  for (KvCache* cache : {&back, &fresh}) read_tokens(tokens, cache, *backend, 20);
  for (int layer = 0; layer < 2; ++layer) {
    for (int head = 0; head < 2; ++head) {
      EXPECT_EQ(kept_positions(back, layer, head), kept_positions(fresh, layer, head));
      EXPECT_EQ(back.rows(layer, head), 95);
    }
  }
}

TEST(SelectCache, ReassignedKeysAreTurnedToTheirPlaces) {
  const auto backend = make_cpu_backend(1, "");
  const std::vector<LayerShape> shapes = select_shapes(1);
  const TokenRows tokens(shapes, 300, 9);
  KvCache cache(CacheSpec::parse("streaming:keep=5,sinks=2,interval=1,positions=reassigned"),
                shapes);
  read_tokens(tokens, &cache, *backend, 8);
  // 8 tokens, 2 sinks, a window of 3: 0, 1, 5, 6, 7 at positions 0 to 4; the next one is at 5.
  EXPECT_EQ(kept_positions(cache, 0, 1), (Positions{0, 1, 2, 3, 4}));
  EXPECT_EQ(cache.next_position(), 5);
  EXPECT_EQ(cache.n_tokens(), 8);
  const std::vector<float> keys = read_rows(cache, 0, 1, false);
  const int32_t was[] = {0, 1, 5, 6, 7};
  for (int r = 0; r < 5; ++r) {
    const float* from = tokens.k(0, was[r], 1).data + kSelectDim;
    for (int p = 0; p < kSelectDim / 2; ++p) {
      const double angle = (r - was[r]) * shapes[0].rotation->frequencies[static_cast<size_t>(p)];
      const double a = from[p];
      const double b = from[p + kSelectDim / 2];
      const float* found = keys.data() + r * kSelectDim;
      // Two roundings to binary16 of values up to 5.
      EXPECT_NEAR(found[p], a * std::cos(angle) - b * std::sin(angle), 8e-3);
      EXPECT_NEAR(found[p + kSelectDim / 2], a * std::sin(angle) + b * std::cos(angle), 8e-3);
    }
  }
  read_tokens(tokens, &cache, *backend, 1);
  EXPECT_EQ(cache.next_position(), 5);
  EXPECT_EQ(cache.rows(0, 0), 5);
  KvCache loaded(cache.spec(), shapes);
  loaded.load(cache.save());
  EXPECT_EQ(loaded.next_position(), 5);
  cache.truncate(0);
  EXPECT_EQ(cache.next_position(), 0);
  std::vector<LayerShape> windowed = shapes;
  windowed[0].window = 8;
  EXPECT_TRUE(contains(message_of([&] { KvCache refused(loaded.spec(), windowed); }),
                       "expected layers without a sliding window"));
}

TEST(SelectCache, LayersWithAWindowDropOnTheirOwn) {
  std::vector<LayerShape> shapes = select_shapes(2);
  shapes[0].window = 64;
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(shapes, 300, 9);
  KvCache cache(CacheSpec::parse("knorm:keep=0.25"), shapes);
  read_tokens(tokens, &cache, *backend, 200);
  EXPECT_GT(cache.rows(0, 0), 100);
  EXPECT_EQ(cache.rows(1, 0), 50);
}

TEST(SelectCache, CorruptStatesAreRefused) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 300, 9);
  for (const char* text : {"h2o:keep=50,interval=8+int4:tail=8", "expected:keep=50,interval=8",
                           "snapkv:keep=70,window=4,interval=8"}) {
    SCOPED_TRACE(text);
    KvCache cache(CacheSpec::parse(text), select_shapes(1));
    read_tokens(tokens, &cache, *backend, 150);
    for (int t = 0; t < 9; ++t) read_tokens(tokens, &cache, *backend, 1);
    const std::vector<std::byte> good = cache.save();
    KvCache target(CacheSpec::parse(text), select_shapes(1));
    Random random(1);
    int refused = 0;
    for (int i = 0; i < 600; ++i) {
      std::vector<std::byte> bad = good;
      // Most of what is checked stands near the beginning.
      const size_t at = static_cast<size_t>(random.bits() % (i % 2 == 0 ? 600 : good.size()));
      bad[at] ^= static_cast<std::byte>(1 << random.bits() % 8);
      try {
        target.load(bad);
        EXPECT_EQ(target.save(), bad);
      } catch (const FormatError&) {
        ++refused;
      }
    }
    EXPECT_GT(refused, 100);
    for (size_t size = 0; size < good.size(); size += 1 + good.size() / 97) {
      EXPECT_THROW(target.load(std::span(good).first(size)), FormatError);
    }
  }
}

}  // namespace
}  // namespace kve
