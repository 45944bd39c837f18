// Saved caches of selectors: what is legitimate comes back, what contradicts itself is refused.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "cache/select_testing.h"

namespace kve {
namespace {

using Bytes = std::vector<std::byte>;

int32_t number_at(const Bytes& bytes, size_t at) {
  int32_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

Bytes with_number(Bytes bytes, size_t at, int32_t value) {
  std::memcpy(bytes.data() + at, &value, sizeof(value));
  return bytes;
}

// Where the fields of a saved cache stand, up to the voters of its first layer; the spec has no
// files and asks for no queries to fit bases.
struct Fields {
  explicit Fields(const KvCache& cache) {
    const Bytes bytes = cache.save();
    n_tokens = 8 + cache.spec().str().size() + 4 + 16 * cache.layers().size();
    prompt_tokens = n_tokens + 4;
    selected_at = n_tokens + 8;
    dropped_at = n_tokens + 12;
    shift = n_tokens + 16;
    size_t at = n_tokens + 20 + 4 + 8;
    for (int h = 0; h < cache.layers()[0].n_kv_heads; ++h) {
      Head head{.rows = at};
      const auto rows = static_cast<size_t>(number_at(bytes, at));
      head.positions = at + 4;
      head.dead = head.positions + 4 * rows;
      head.n_masses = head.dead + 8 * ((rows + 63) / 64);
      at = head.n_masses + 4 + 4 * static_cast<size_t>(number_at(bytes, head.n_masses));
      heads.push_back(head);
    }
    n_voters = at;
    n_query_heads = at + 4;
    width = at + 8;
  }

  struct Head {
    size_t rows = 0;
    size_t positions = 0;
    size_t dead = 0;
    size_t n_masses = 0;
  };
  size_t n_tokens, prompt_tokens, selected_at, dropped_at, shift;
  std::vector<Head> heads;
  size_t n_voters, n_query_heads, width;
};

// A cache of one layer that read a prompt and then single tokens.
KvCache read_cache(const char* spec, int n_prompt, int n_more) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), n_prompt + n_more, 9);
  KvCache cache(CacheSpec::parse(spec), select_shapes(1));
  read_tokens(tokens, &cache, *backend, n_prompt);
  for (int t = 0; t < n_more; ++t) read_tokens(tokens, &cache, *backend, 1);
  return cache;
}

// What loading says; the cache that was there stays.
std::string refusal(const KvCache& like, const Bytes& bytes) {
  KvCache target = like.fork();
  const Bytes before = target.save();
  const std::string text = message_of<FormatError>([&] { target.load(bytes); });
  EXPECT_EQ(target.save(), before);
  return text;
}

TEST(SelectIo, SessionsThatStoppedObservingContinue) {
  // Their prompts drop nothing, and no later selection is asked for: the rows of later tokens have
  // no masses. The benchmark's H2O adds some only when it masks.
  const auto backend = make_cpu_backend(1, "");
  for (const char* text : {"observed:keep=512,interval=0", "h2o:keep=512,interval=0",
                           "snapkv:keep=512,window=16", "h2o_bench:keep=0.5"}) {
    SCOPED_TRACE(text);
    const TokenRows tokens(select_shapes(1), 400, 9);
    KvCache cache(CacheSpec::parse(text), select_shapes(1));
    read_tokens(tokens, &cache, *backend, 100);
    read_tokens(tokens, &cache, *backend, 1);
    read_tokens(tokens, &cache, *backend, 7, true);
    const Bytes bytes = cache.save();
    KvCache loaded(cache.spec(), select_shapes(1));
    loaded.load(bytes);
    EXPECT_EQ(loaded.save(), bytes);
    EXPECT_EQ(loaded.stats().bytes, loaded.memory().live());
    for (const int n : {1, 30, 1}) {
      EXPECT_EQ(read_tokens(tokens, &loaded, *backend, n), read_tokens(tokens, &cache, *backend, n))
          << n;
    }
    EXPECT_EQ(loaded.save(), cache.save());
    if (!cache.can_truncate(60)) continue;
    // The prompt goes on elsewhere, and is observed again.
    for (KvCache* each : {&cache, &loaded}) {
      each->truncate(60);
      read_tokens(tokens, each, *backend, 50);
      read_tokens(tokens, each, *backend, 1);
    }
    EXPECT_EQ(loaded.save(), cache.save());
  }
}

TEST(SelectIo, TheLastMassIsMissingAtMost) {
  const KvCache cache = read_cache("observed:keep=512,interval=0", 100, 1);
  const Fields fields(cache);
  EXPECT_EQ(number_at(cache.save(), fields.heads[0].rows), 101);
  EXPECT_EQ(number_at(cache.save(), fields.heads[0].n_masses), 100);
  for (const int32_t n : {-1, 102, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(
        refusal(cache, with_number(cache.save(), fields.heads[0].n_masses, n)),
        message("cache state, layer 0, kv head 0: number of masses: expected 0 to 101, found ", n));
  }
}

TEST(SelectIo, MassesThatNobodyAddsUpAreRefused) {
  for (const char* text : {"snapkv:keep=70,window=4,interval=8", "knorm:keep=70,interval=8",
                           "expected:keep=70,interval=8", "tova:keep=70"}) {
    SCOPED_TRACE(text);
    const KvCache cache = read_cache(text, 150, 3);
    const Fields fields(cache);
    const int32_t rows = number_at(cache.save(), fields.heads[1].rows);
    Bytes bytes = with_number(cache.save(), fields.heads[1].n_masses, rows);
    bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(fields.heads[1].n_masses) + 4,
                 4 * static_cast<size_t>(rows), std::byte{0});
    EXPECT_EQ(
        refusal(cache, bytes),
        message("cache state, layer 0, kv head 1: number of masses: expected 0, found ", rows));
  }
}

TEST(SelectIo, VotersThatContradictThemselvesAreRefused) {
  const KvCache cache = read_cache("snapkv:keep=70,window=4,interval=8", 150, 3);
  const Bytes good = cache.save();
  const Fields fields(cache);
  ASSERT_EQ(number_at(good, fields.n_query_heads), 4);
  ASSERT_EQ(number_at(good, fields.width), 4 * kSelectDim);
  EXPECT_EQ(refusal(cache, with_number(good, fields.n_query_heads, 3)),
            "cache state, layer 0: query heads: expected a multiple of 2, found 3");
  EXPECT_EQ(refusal(cache, with_number(good, fields.n_query_heads, 6)),
            "cache state, layer 0: width of a query: expected 192, found 128");
  EXPECT_EQ(refusal(cache, with_number(good, fields.width, 127)),
            "cache state, layer 0: width of a query: expected 128, found 127");
  for (const int32_t n : {-1, 1000, INT32_MAX}) {
    EXPECT_TRUE(contains(refusal(cache, with_number(good, fields.n_voters, n)),
                         "layer 0: number of voters: expected 0 to "));
  }
  // The largest width there is; its sums no longer fit.
  Bytes wide = with_number(good, fields.n_query_heads, 67108862);
  wide = with_number(wide, fields.width, 67108862 * kSelectDim);
  EXPECT_TRUE(contains(refusal(cache, wide), "a number of voters of"));

  // More voters than tokens were read.
  const KvCache young = read_cache("snapkv:keep=70,window=4,interval=8", 3, 0);
  const Fields place(young);
  ASSERT_EQ(number_at(young.save(), place.n_voters), 3);
  EXPECT_EQ(refusal(young, with_number(young.save(), place.n_voters, 4)),
            "cache state, layer 0: number of voters: expected 0 to 3, found 4");

  // Where weights are summed up, no query stays.
  const KvCache sums = read_cache("h2o:keep=50,interval=8", 150, 3);
  const Fields h2o(sums);
  ASSERT_EQ(number_at(sums.save(), h2o.n_voters), 0);
  EXPECT_EQ(refusal(sums, with_number(sums.save(), h2o.n_voters, 1)),
            "cache state, layer 0: number of voters: expected 0 to 0, found 1");
  EXPECT_EQ(refusal(sums, with_number(sums.save(), h2o.width + 4, 4)),
            "cache state, layer 0: query heads of moments: expected 0, found 4");
  const KvCache moments = read_cache("expected:keep=50,interval=8", 150, 3);
  EXPECT_EQ(refusal(moments, with_number(moments.save(), Fields(moments).width + 4, 2)),
            "cache state, layer 0: query heads of moments: expected 4, found 2");
}

TEST(SelectIo, HeadsThatAreChosenForTogetherHaveEqualRows) {
  const KvCache cache = read_cache("tova:keep=20", 40, 1);
  const Bytes good = cache.save();
  const Fields fields(cache);
  int moved = 0;
  for (int32_t r = 0; r + 1 < number_at(good, fields.heads[1].rows); ++r) {
    const size_t at = fields.heads[1].positions + 4 * static_cast<size_t>(r);
    const int32_t position = number_at(good, at);
    if (number_at(good, at + 4) == position + 1) continue;
    EXPECT_EQ(refusal(cache, with_number(good, at, position + 1)),
              "cache state, layer 0, kv head 1: expected the rows of kv head 0, found others");
    ++moved;
  }
  EXPECT_GT(moved, 0);
  EXPECT_TRUE(contains(refusal(cache, with_number(good, fields.heads[1].dead, 1)),
                       "expected the rows of kv head 0, found others"));

  const KvCache turned =
      read_cache("streaming:keep=20,sinks=2,interval=4,positions=reassigned", 40, 3);
  const Bytes bytes = turned.save();
  const Fields place(turned);
  const int32_t shift = number_at(bytes, place.shift);
  ASSERT_EQ(shift, 20);
  EXPECT_EQ(refusal(turned, with_number(bytes, place.shift, shift - 1)),
            "cache state, layer 0, kv head 0: rows since the latest drop: expected 3, found 2");
  EXPECT_EQ(refusal(turned, with_number(bytes, place.heads[1].dead, 4)),
            "cache state, layer 0, kv head 1: dead rows at reassigned positions: expected none, "
            "found 1");
}

TEST(SelectIo, CountsInTheHeaderAreInOrder) {
  const KvCache cache = read_cache("h2o:keep=50,interval=8", 150, 10);
  const Bytes good = cache.save();
  const Fields fields(cache);
  ASSERT_EQ(number_at(good, fields.prompt_tokens), 150);
  ASSERT_EQ(number_at(good, fields.selected_at), 158);
  ASSERT_EQ(number_at(good, fields.dropped_at), 158);
  const auto says = [&](size_t at, int32_t value) {
    return refusal(cache, with_number(good, at, value));
  };
  EXPECT_EQ(says(fields.selected_at, 161),
            "cache state, header: tokens at the latest selection: expected 0 to 160, found 161");
  EXPECT_EQ(says(fields.selected_at, -1),
            "cache state, header: tokens at the latest selection: expected 0 to 160, found -1");
  EXPECT_EQ(says(fields.selected_at, 149),
            "cache state, header: tokens of the prompt: expected 0 to 149, found 150");
  EXPECT_EQ(says(fields.dropped_at, 159),
            "cache state, header: tokens at the latest drop: expected 0 to 158, found 159");
  EXPECT_EQ(says(fields.shift, 1), "cache state, header: shift: expected 0, found 1");
  // Rows are gone, though none was dropped, or not since.
  EXPECT_EQ(says(fields.dropped_at, 0),
            "cache state, layer 0, kv head 0: rows since the latest drop: expected 160, found 60");
  // 58 rows, some of them dead, of tokens before the latest drop, and two of later ones.
  ASSERT_EQ(number_at(good, fields.heads[0].rows), 60);
  Bytes dead = good;
  dead[fields.heads[0].dead + 7] |= std::byte{1 << 3};  // row 59
  EXPECT_EQ(refusal(cache, dead),
            "cache state, layer 0, kv head 0: dead rows: expected rows before 58, found 59");

  const KvCache turned =
      read_cache("streaming:keep=20,sinks=2,interval=4,positions=reassigned", 40, 3);
  EXPECT_EQ(refusal(turned, with_number(turned.save(), Fields(turned).shift, 41)),
            "cache state, header: shift: expected 0 to 40, found 41");
}

// What save() writes must load again, whatever was read, rejected and taken back before.
TEST(SelectIo, WhateverWasDoneLoadsAgain) {
  const auto backend = make_cpu_backend(1, "");
  for (const char* text :
       {"h2o:keep=50,interval=8", "h2o:keep=50,interval=0", "observed:keep=0.5,interval=16+int4",
        "h2o:keep=80,prompt=chunked,interval=16+q4_0", "h2o_bench:keep=0.3+int4:tail=10",
        "snapkv:keep=60,window=16,interval=16", "expected:keep=60,interval=16", "tova:keep=40",
        "adakv:keep=0.3,window=16,interval=8+hadamard+int4:tail=10", "knorm:keep=0.4,interval=9",
        "streaming:keep=90,sinks=4,interval=30,positions=reassigned+int4:tail=0",
        "random:keep=0.5,interval=9+q8_0"}) {
    SCOPED_TRACE(text);
    const TokenRows tokens(select_shapes(2), 2000, 7);
    KvCache cache(CacheSpec::parse(text), select_shapes(2));
    Random random(3);
    bool prompt = true;
    for (int step = 0; step < 60; ++step) {
      const int n_tokens = cache.n_tokens();
      switch (random.bits() % 6) {
        case 0:
          read_tokens(tokens, &cache, *backend, 30, prompt || random.bits() % 2 == 0);
          break;
        case 1: {
          // Of a few tokens, some are accepted.
          attend_tokens(tokens, &cache, *backend, 4);
          cache.commit(*backend, 2);
          cache.rollback();
          prompt = false;
          break;
        }
        case 2: {
          const int n = n_tokens - static_cast<int>(random.bits() % 5);
          if (cache.can_truncate(n)) cache.truncate(n);
          break;
        }
        case 3:
          if (random.bits() % 4 != 0) break;
          cache.truncate(0);
          prompt = true;
          break;
        default:
          read_tokens(tokens, &cache, *backend, prompt ? 120 : 1);
          prompt = false;
      }
      const Bytes bytes = cache.save();
      KvCache loaded(cache.spec(), select_shapes(2));
      loaded.load(bytes);
      ASSERT_EQ(loaded.save(), bytes) << step;
      if (step % 5 == 0) cache = std::move(loaded);
    }
  }
}

// What is accepted of a damaged state can be read on, whatever it says.
TEST(SelectIo, DamagedStatesThatLoadCanBeReadOn) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 400, 9);
  for (const char* text :
       {"h2o:keep=50,interval=4", "h2o:keep=200,interval=0", "observed:keep=50,interval=4+int4",
        "snapkv:keep=70,window=4,interval=4", "expected:keep=50,interval=4", "tova:keep=50",
        "h2o_bench:keep=0.4", "streaming:keep=50,interval=4,positions=reassigned"}) {
    SCOPED_TRACE(text);
    const KvCache cache = read_cache(text, 120, 3);
    const Bytes good = cache.save();
    const Fields fields(cache);
    std::vector<size_t> places = {fields.n_tokens,      fields.prompt_tokens, fields.selected_at,
                                  fields.dropped_at,    fields.shift,         fields.n_voters,
                                  fields.n_query_heads, fields.width};
    for (const Fields::Head& head : fields.heads) {
      places.insert(places.end(), {head.rows, head.positions, head.dead, head.n_masses});
    }
    Random random(2);
    int loaded = 0;
    for (int i = 0; i < 300; ++i) {
      const size_t place = places[random.bits() % places.size()];
      // The number itself or one behind it.
      const size_t at = place + 4 * (random.bits() % 2 == 0 ? 0 : random.bits() % 40);
      const int32_t to = random.bits() % 2 == 0 ? static_cast<int32_t>(random.bits() % 130)
                                                : number_at(good, at) ^ (1 << random.bits() % 32);
      KvCache target(cache.spec(), select_shapes(1));
      try {
        target.load(with_number(good, at, to));
      } catch (const FormatError&) {
        continue;
      }
      ++loaded;
      ASSERT_LE(target.n_tokens(), 130);
      try {
        for (const int n : {1, 1, 1, 20, 1, 1}) read_tokens(tokens, &target, *backend, n);
        for (const int n : {target.n_tokens() - 2, 60, 0}) {
          if (!target.can_truncate(n)) continue;
          target.truncate(n);
          read_tokens(tokens, &target, *backend, 10);
        }
      } catch (const Error&) {
        // Of another number of query heads, for one.
      }
    }
    EXPECT_GT(loaded, 10);
  }
}

TEST(SelectIo, OtherGatesAreRefused) {
  const auto backend = make_cpu_backend(1, "");
  const std::string path = testing::TempDir() + "select_io_gates.txt";
  const CacheSpec spec = CacheSpec::parse("duo:gates=" + path + ",sinks=8,recent=24,interval=32");
  const auto cache_of = [&](const char* gates) {
    std::ofstream(path) << gates;
    return KvCache(spec, select_shapes(2));
  };
  const TokenRows tokens(select_shapes(2), 300, 9);
  KvCache cache = cache_of("0.9 0.1\n0.2 0.8\n");
  read_tokens(tokens, &cache, *backend, 200);
  const Bytes bytes = cache.save();
  // The same heads stream.
  KvCache same = cache_of("1 0\n0 1\n");
  same.load(bytes);
  EXPECT_EQ(same.save(), bytes);
  EXPECT_EQ(read_tokens(tokens, &same, *backend, 1), read_tokens(tokens, &cache, *backend, 1));
  const KvCache other = cache_of("0.1 0.9\n0.2 0.8\n");
  EXPECT_TRUE(contains(refusal(other, bytes), "cache state: checksum of the gates: expected "));
  std::remove(path.c_str());
  EXPECT_EQ(message_of<IoError>([&] {
              KvCache(CacheSpec::parse("duo:gates=" + testing::TempDir()), select_shapes(2));
            }),
            "gates '" + testing::TempDir() + "': expected a regular file");
}

}  // namespace
}  // namespace kve
