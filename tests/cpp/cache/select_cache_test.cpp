// Caches that drop tokens, against a simulation in float64 that keeps a list of positions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cache/select_testing.h"

namespace kve {
namespace {

using Positions = std::vector<int32_t>;

// What one layer must keep: whole attention matrices, lists of positions.
class Simulation {
 public:
  struct Rule {
    std::string name;
    double share = 1;
    int tokens = 0;
    int recent = 0;
    int window = 0;
    int kernel = 1;
    int interval = 0;
  };

  Simulation(const TokenRows& tokens, size_t layer, const Rule& rule)
      : tokens_(tokens), layer_(layer), rule_(rule), heads_(2) {}

  void read(int n, bool prompt_goes_on) {
    for (int t = 0; t < n; ++t) {
      for (size_t h = 0; h < heads_.size(); ++h) {
        heads_[h].kept.push_back(seen_ + t);
        heads_[h].mass.push_back(0);
      }
    }
    for (int t = seen_; t < seen_ + n; ++t) {
      for (size_t h = 0; h < heads_.size(); ++h) {
        const std::vector<double> weights = weigh(h, t);
        for (size_t r = 0; r < weights.size(); ++r) heads_[h].mass[r] += weights[r];
        heads_[h].history.push_back({heads_[h].kept, weights});
      }
    }
    seen_ += n;
    if (prompt_goes_on) return;
    const bool first = prompt_ == 0;
    if (first) prompt_ = seen_;
    if (!first && (rule_.interval == 0 || seen_ - selected_ < rule_.interval)) return;
    selected_ = seen_;
    select();
  }

  const Positions& kept(size_t head) const { return heads_[head].kept; }

 private:
  struct Step {
    Positions kept;
    std::vector<double> weights;  // of the rows seen then
  };
  struct Head {
    Positions kept;
    std::vector<double> mass;
    std::vector<Step> history;
  };

  // What the query of token t gives to the rows of a head, summed over its two query heads.
  std::vector<double> weigh(size_t head, int t) const {
    const AttendParams params = select_params();
    std::vector<double> out(heads_[head].kept.size());
    for (size_t g = 0; g < 2; ++g) {
      const float* q = tokens_.q(layer_, t, 1).data + (2 * head + g) * kSelectDim;
      std::vector<double> weights;
      double sum = 0;
      for (const int32_t position : heads_[head].kept) {
        double score = 0;
        const float* k = tokens_.k(layer_, position, 1).data + head * kSelectDim;
        for (int d = 0; d < kSelectDim; ++d) {
          score += double{q[d]} * double{half_to_float(float_to_half(k[d]))};
        }
        weights.push_back(position > t ? 0 : std::exp(double{params.scale} * score));
        sum += weights.back();
      }
      for (size_t r = 0; r < out.size(); ++r) out[r] += weights[r] / sum;
    }
    return out;
  }

  // What the newest n queries gave a row.
  double votes(size_t head, int32_t position, int n) const {
    double sum = 0;
    const std::vector<Step>& history = heads_[head].history;
    for (size_t i = history.size() - static_cast<size_t>(n); i < history.size(); ++i) {
      const Positions& then = history[i].kept;
      const auto at = std::ranges::lower_bound(then, position);
      if (at != then.end() && *at == position) {
        sum += history[i].weights[static_cast<size_t>(at - then.begin())];
      }
    }
    return sum;
  }

  std::vector<double> scores(size_t head) const {
    const Head& own = heads_[head];
    std::vector<double> out;
    for (size_t r = 0; r < own.kept.size(); ++r) {
      const int32_t position = own.kept[r];
      if (rule_.name == "h2o") out.push_back(own.mass[r]);
      if (rule_.name == "observed") out.push_back(own.mass[r] / (seen_ - position));
      if (rule_.name == "tova") out.push_back(votes(0, position, 1) + votes(1, position, 1));
      if (rule_.name == "streaming") out.push_back(position < 4 ? 1e9 : position);
      if (rule_.name == "snapkv") out.push_back(votes(head, position, rule_.window));
    }
    if (rule_.name != "snapkv") return out;
    const auto before = std::ranges::lower_bound(own.kept, seen_ - rule_.window) - own.kept.begin();
    std::vector<double> pooled(out.size(), std::numeric_limits<double>::infinity());
    for (long r = 0; r < before; ++r) {
      double sum = 0;
      for (long i = r - rule_.kernel / 2; i <= r + rule_.kernel / 2; ++i) {
        if (i >= 0 && i < before) sum += out[static_cast<size_t>(i)];
      }
      pooled[static_cast<size_t>(r)] = sum;
    }
    return pooled;
  }

  void select() {
    std::vector<std::vector<double>> all = {scores(0), scores(1)};
    const int budget = rule_.tokens > 0 ? rule_.tokens : static_cast<int>(prompt_ * rule_.share);
    for (size_t h = 0; h < heads_.size(); ++h) {
      Head& own = heads_[h];
      std::vector<size_t> order(own.kept.size());
      std::iota(order.begin(), order.end(), size_t{0});
      for (size_t r = 0; r < order.size(); ++r) {
        if (own.kept[r] >= seen_ - rule_.recent) all[h][r] = INFINITY;
      }
      std::ranges::stable_sort(order, [&](size_t a, size_t b) { return all[h][a] > all[h][b]; });
      order.resize(std::min(order.size(), static_cast<size_t>(budget)));
      std::ranges::sort(order);
      Head left;
      left.history = own.history;
      for (const size_t r : order) {
        left.kept.push_back(own.kept[r]);
        left.mass.push_back(own.mass[r]);
      }
      own = left;
    }
  }

  const TokenRows& tokens_;
  size_t layer_;
  Rule rule_;
  std::vector<Head> heads_;
  int seen_ = 0;
  int prompt_ = 0;
  int selected_ = 0;
};

struct Case {
  const char* spec;
  Simulation::Rule rule;
};
const Case kCases[] = {
    {"h2o:keep=0.25,recent=10", {"h2o", 0.25, 0, 10, 0, 1, 1}},
    {"h2o:keep=60", {"h2o", 1, 60, 30, 0, 1, 1}},
    {"h2o:keep=60,interval=16", {"h2o", 1, 60, 30, 0, 1, 16}},
    {"observed:keep=0.5", {"observed", 0.5, 0, 0, 0, 1, 0}},
    {"observed:keep=0.25,recent=8,interval=5", {"observed", 0.25, 0, 8, 0, 1, 5}},
    {"tova:keep=50", {"tova", 1, 50, 1, 0, 1, 1}},
    {"streaming:keep=40", {"streaming", 1, 40, 0, 0, 1, 1}},
    {"snapkv:keep=0.25,window=8,kernel=3", {"snapkv", 0.25, 0, 0, 8, 3, 0}},
    {"snapkv:keep=70,window=16,kernel=5,interval=32", {"snapkv", 1, 70, 0, 16, 5, 32}},
};

TEST(SelectCache, KeepsWhatTheSimulationKeeps) {
  const auto backend = make_cpu_backend(2, "");
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.spec);
    const TokenRows tokens(select_shapes(2), 420, 7);
    KvCache cache(CacheSpec::parse(c.spec), select_shapes(2));
    std::vector<Simulation> layers = {Simulation(tokens, 0, c.rule), Simulation(tokens, 1, c.rule)};
    const auto read = [&](int n, bool goes_on) {
      read_tokens(tokens, &cache, *backend, n, goes_on);
      for (size_t i = 0; i < layers.size(); ++i) {
        layers[i].read(n, goes_on);
        for (size_t h = 0; h < 2; ++h) {
          ASSERT_EQ(kept_positions(cache, static_cast<int>(i), static_cast<int>(h)),
                    layers[i].kept(h))
              << "layer " << i << " head " << h << " after " << cache.n_tokens();
        }
      }
    };
    read(100, true);
    read(57, true);
    read(43, false);
    for (int t = 0; t < 150 && !testing::Test::HasFatalFailure(); ++t) read(1, false);
    // Several tokens at once, as when a chat goes on.
    read(40, false);
    for (int t = 0; t < 20 && !testing::Test::HasFatalFailure(); ++t) read(1, false);
    EXPECT_EQ(cache.stats().bytes, cache.memory().live());
    EXPECT_LT(cache.stats().tokens_kept, cache.stats().tokens_seen);
  }
}

// Attention of the n next tokens must be that over the rows which are there.
void check_attention(const TokenRows& tokens, KvCache* cache, Backend& backend, int n) {
  const AttendParams params = select_params(cache->layers()[0].n_kv_heads);
  const int first = cache->n_tokens();
  const std::vector<float> found = attend_tokens(tokens, cache, backend, n);
  const int layer = static_cast<int>(cache->layers().size()) - 1;
  const AttendTask task{tokens.q(static_cast<size_t>(layer), first, n), cache->view(layer), first,
                        Mat()};
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
    EXPECT_LT(cache.stats().tokens_kept, 300);
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
