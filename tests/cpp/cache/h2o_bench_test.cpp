// H2O as a benchmark ran it, in caches: which rows each query head sees, against the trace of the
// published code and a simulation in float64, and what it takes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cache/select_testing.h"

namespace kve {
namespace {

using Positions = std::vector<int32_t>;
using Weights = std::vector<double>;

// One query head, by the definition: whole rows of attention over positions that a list of flags
// shows.
class MaskedHead {
 public:
  MaskedHead(int prompt, double share)
      : heavy_(static_cast<int>(share / 2 * (prompt + 1))),
        recent_(heavy_),
        shown_(static_cast<size_t>(prompt), true),
        scores_(static_cast<size_t>(prompt)) {}

  // Tokens were read, of which the newest query gave all positions these weights.
  void step(const Weights& weights) {
    const size_t n = weights.size();
    scores_.resize(n);
    for (size_t j = 0; j < n; ++j) scores_[j] += weights[j];
    const size_t older = n - std::min(n, static_cast<size_t>(recent_));
    std::vector<size_t> order(older);
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return scores_[a] > scores_[b]; });
    shown_.assign(n + 1, false);
    for (size_t i = 0; i < std::min(order.size(), static_cast<size_t>(heavy_)); ++i) {
      shown_[order[i]] = true;
    }
    for (size_t j = 0; j < older; ++j) scores_[j] *= shown_[j] ? 1 : 0;
    for (size_t j = n + 1 - static_cast<size_t>(recent_); j <= n; ++j) shown_[j] = true;
  }

  bool shows(int position) const {
    return static_cast<size_t>(position) >= shown_.size() || shown_[static_cast<size_t>(position)];
  }
  Positions shown(int n) const {
    Positions out;
    for (int j = 0; j < n; ++j) {
      if (shows(j)) out.push_back(j);
    }
    return out;
  }

 private:
  int heavy_;
  int recent_;
  std::vector<bool> shown_;
  std::vector<double> scores_;
};

// The weights that the query of token t gives positions 0 ... t, of those that it is shown.
Weights weigh(const TokenRows& tokens, size_t layer, int query_head, int kv_head, int t,
              const MaskedHead& head) {
  const float* q = tokens.q(layer, t, 1).data + query_head * kSelectDim;
  Weights out;
  double sum = 0;
  for (int j = 0; j <= t; ++j) {
    const float* k = tokens.k(layer, j, 1).data + kv_head * kSelectDim;
    double score = 0;
    for (int d = 0; d < kSelectDim; ++d) {
      score += double{q[d]} * double{half_to_float(float_to_half(k[d]))};
    }
    out.push_back(head.shows(j) ? std::exp(double{select_params().scale} * score) : 0);
    sum += out.back();
  }
  for (double& weight : out) weight /= sum;
  return out;
}

// What the last layer gives the query of token t: [n_heads * dim].
std::vector<double> mix(const TokenRows& tokens, size_t layer, const std::vector<Weights>& weights,
                        int group) {
  std::vector<double> out;
  for (size_t h = 0; h < weights.size(); ++h) {
    std::vector<double> sum(kSelectDim);
    for (size_t j = 0; j < weights[h].size(); ++j) {
      const float* v = tokens.v(layer, static_cast<int>(j), 1).data +
                       h / static_cast<size_t>(group) * kSelectDim;
      for (size_t d = 0; d < sum.size(); ++d) {
        sum[d] += weights[h][j] * double{half_to_float(float_to_half(v[d]))};
      }
    }
    out.insert(out.end(), sum.begin(), sum.end());
  }
  return out;
}

// The cache beside simulated heads of two layers.
class Beside {
 public:
  Beside(const TokenRows& tokens, double share, int prompt, int group)
      : tokens_(tokens), group_(group), seen_(prompt) {
    layers_.assign(2, std::vector(static_cast<size_t>(2 * group), MaskedHead(prompt, share)));
  }

  void read(KvCache* cache, Backend& backend, int n) {
    const std::vector<float> found = read_tokens(tokens_, cache, backend, n, false, group_);
    seen_ += n;
    std::vector<double> expected;
    for (size_t i = 0; i < layers_.size(); ++i) {
      std::vector<Weights> weights;
      for (size_t h = 0; h < layers_[i].size(); ++h) {
        MaskedHead& head = layers_[i][h];
        const auto query_head = static_cast<int>(h);
        weights.push_back(weigh(tokens_, i, query_head, query_head / group_, seen_ - 1, head));
        head.step(weights.back());
        ASSERT_EQ(cache->seen_positions(static_cast<int>(i), query_head), head.shown(seen_))
            << "layer " << i << " query head " << h << " after " << seen_;
      }
      expected = mix(tokens_, i, weights, group_);
    }
    const size_t newest = found.size() - expected.size();
    for (size_t c = 0; c < expected.size(); ++c) {
      ASSERT_NEAR(found[newest + c], expected[c], 2e-5) << "after " << seen_;
    }
  }

  // Query heads that share a kv head and see different rows.
  int that_differ() const {
    int out = 0;
    for (const std::vector<MaskedHead>& heads : layers_) {
      for (size_t h = 1; h < heads.size(); ++h) {
        const bool shared = h % static_cast<size_t>(group_) != 0;
        if (shared && heads[h].shown(seen_) != heads[h - 1].shown(seen_)) ++out;
      }
    }
    return out;
  }

 private:
  const TokenRows& tokens_;
  int group_;
  int seen_;
  std::vector<std::vector<MaskedHead>> layers_;
};

// Whether floats as these, up to the rounding of keys to binary16, stand side by side.
bool holds_floats(std::span<const std::byte> bytes, std::span<const double> values) {
  const size_t size = values.size() * sizeof(float);
  for (size_t at = 0; at + size <= bytes.size(); ++at) {
    std::vector<float> found(values.size());
    std::memcpy(found.data(), bytes.data() + at, size);
    if (std::ranges::equal(found, values, [](float a, double b) {
          return b == 0 ? a == 0 : std::abs(double{a} - b) < 1e-3;
        })) {
      return true;
    }
  }
  return false;
}

TEST(H2oBench, EachQueryHeadSeesWhatTheSimulationShows) {
  for (const int group : {2, 1}) {
    for (const double share : {0.5, 0.25, 0.166}) {
      SCOPED_TRACE(testing::Message() << "group " << group << " keep " << share);
      const auto backend = make_cpu_backend(2, "");
      const TokenRows tokens(select_shapes(2), 400, 19);
      const std::string spec = "h2o_bench:keep=" + std::to_string(share);
      KvCache cache(CacheSpec::parse(spec), select_shapes(2));
      read_tokens(tokens, &cache, *backend, 60, true, group);
      read_tokens(tokens, &cache, *backend, 67, false, group);
      Beside beside(tokens, share, 127, group);
      const auto read = [&](int n) {
        if (!testing::Test::HasFatalFailure()) beside.read(&cache, *backend, n);
      };
      for (int t = 0; t < 90; ++t) read(1);
      // Several tokens at once, as when a chat goes on: the newest query votes.
      read(40);
      for (int t = 0; t < 10; ++t) read(1);
      // Saved and loaded, or forked, it goes on.
      KvCache loaded(cache.spec(), select_shapes(2));
      loaded.load(cache.save());
      EXPECT_EQ(loaded.save(), cache.save());
      cache = std::move(loaded);
      for (int t = 0; t < 10; ++t) read(1);
      cache = cache.fork();
      for (int t = 0; t < 10; ++t) read(1);
      // Tokens that are taken back before they are committed leave no vote.
      attend_tokens(tokens, &cache, *backend, 3, group);
      cache.rollback();
      for (int t = 0; t < 10; ++t) read(1);
      EXPECT_EQ(beside.that_differ(), group == 2 ? 4 : 0);
    }
  }
}

// Methods: 8 tokens of a prompt, then a query that gives 9 keys the weights of a script; ratios of
// a quarter of 9: 2 heavy, 2 recent. The heads of a group have scripts of their own, in channels of
// their own.
TEST(H2oBench, FollowsTheTraceOfThePublishedCode) {
  const std::vector<double> scripts[] = {{.30, .05, .20, .05, .10, .05, .05, .10, .10},
                                         {.05, .30, .05, .05, .05, .10, .20, .10, .10}};
  const Positions shown[] = {{0, 2, 8}, {1, 6, 8}};  // and the next token, at 9
  for (const int group : {1, 2}) {
    const auto backend = make_cpu_backend(1, "");
    const std::vector<LayerShape> shapes = select_shapes(1, 1);
    KvCache cache(CacheSpec::parse("h2o_bench:keep=0.5"), shapes);
    const AttendParams params = select_params(1, group);
    std::vector<float> keys(9 * kSelectDim);
    for (size_t j = 0; j < 9; ++j) {
      for (size_t g = 0; g < 2; ++g) {
        keys[j * kSelectDim + g] = static_cast<float>(std::log(scripts[g][j]));
      }
    }
    std::vector<float> queries(static_cast<size_t>(9 * group * kSelectDim));
    for (int j = 0; j < 9; ++j) {
      for (int g = 0; g < group; ++g) {
        queries[static_cast<size_t>((j * group + g) * kSelectDim + g)] = 1 / params.scale;
      }
    }
    const ConstMat k(keys.data(), 9, kSelectDim);
    const ConstMat q(queries.data(), 9, int64_t{group} * kSelectDim);
    std::vector<float> out(queries.size());
    const auto read = [&](int first, int n) {
      cache.append(*backend, 0, k.block(first, n), k.block(first, n));
      std::vector<AttendTask> tasks;
      cache.plan_attention(*backend, params, 0, q.block(first, n), Mat(out.data(), n, q.cols),
                           &tasks);
      backend->attend(params, tasks);
      cache.observe_attention(*backend, 0, params, tasks[0]);
      cache.commit(*backend, n);
    };
    read(0, 8);
    EXPECT_FALSE(cache.attends_apart(0));
    read(8, 1);
    EXPECT_TRUE(cache.attends_apart(0));
    for (int g = 0; g < group; ++g) {
      EXPECT_EQ(cache.seen_positions(0, g), shown[g]) << "query head " << g << " of " << group;
    }
    // What the heads carry on: the scores at the end of what a session holds of the layer.
    const std::vector<std::byte> bytes = cache.save();
    for (int g = 0; g < group; ++g) {
      std::vector<double> carried = scripts[g];
      for (size_t j = 0; j < 7; ++j) {
        if (std::ranges::count(shown[g], static_cast<int32_t>(j)) == 0) carried[j] = 0;
      }
      EXPECT_TRUE(holds_floats(bytes, carried)) << "query head " << g << " of " << group;
    }
  }
}

TEST(H2oBench, FreesNothingAndTakesTheScoresOnly) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 400, 9);
  KvCache cache(CacheSpec::parse("h2o_bench:keep=0.25"), select_shapes(1));
  KvCache whole(CacheSpec::parse("f16"), select_shapes(1));
  for (KvCache* each : {&cache, &whole}) read_tokens(tokens, each, *backend, 99);
  // The prompt and the first step see everything.
  EXPECT_EQ(read_tokens(tokens, &cache, *backend, 1), read_tokens(tokens, &whole, *backend, 1));
  EXPECT_EQ(cache.seen_positions(0, 3).size(), 2 * 12 - 1);  // an eighth of 100, twice
  EXPECT_NE(read_tokens(tokens, &cache, *backend, 1), read_tokens(tokens, &whole, *backend, 1));
  for (KvCache* each : {&cache, &whole}) {
    for (int t = 0; t < 200; ++t) read_tokens(tokens, each, *backend, 1);
  }
  const CacheStats stats = cache.stats();
  const CacheStats full = whole.stats();
  EXPECT_EQ(stats.bytes, cache.memory().live());
  EXPECT_EQ(stats.tokens_kept, 301);
  EXPECT_EQ(cache.rows(0, 1), 301);
  // All rows in f16, in whole pages and a tail; f16 alone writes into its last page.
  EXPECT_EQ(stats.codes, 256 * 2 * 2 * kSelectDim * 2);
  EXPECT_GE(stats.codes + stats.tail, 301 * 2 * 2 * kSelectDim * 2);
  EXPECT_LE(stats.codes + stats.tail, full.codes + full.tail);
  // A score of 4 bytes and a bit of each row, for each of 4 query heads; positions of each of 2 kv
  // heads with some room, and the newest queries.
  const int64_t scores = 4 * (301 * 4 + 5 * 8);
  EXPECT_GE(stats.meta - full.meta, scores);
  EXPECT_LE(stats.meta - full.meta, scores + 2 * 380 * 4 + 4096 + 8 * 4 * (4 * kSelectDim + 4) * 4);
  cache.truncate(0);
  EXPECT_FALSE(cache.attends_apart(0));
  EXPECT_EQ(cache.stats().bytes, cache.memory().live());
}

TEST(H2oBench, DamagedMasksAreRefused) {
  const auto backend = make_cpu_backend(1, "");
  const TokenRows tokens(select_shapes(1), 200, 9);
  KvCache cache(CacheSpec::parse("h2o_bench:keep=0.25"), select_shapes(1));
  read_tokens(tokens, &cache, *backend, 99);
  read_tokens(tokens, &cache, *backend, 1);
  const std::vector<std::byte> good = cache.save();
  int scores = 0;
  int words = 0;
  for (size_t at = good.size() % 4; at < good.size(); at += 4) {  // what follows is of 4 bytes
    std::vector<std::byte> bad = good;
    bad[at + 3] ^= std::byte{0x80};  // the sign of a float, or the last bit of a word
    KvCache target(cache.spec(), select_shapes(1));
    try {
      target.load(bad);
      read_tokens(tokens, &target, *backend, 1);
    } catch (const FormatError& error) {
      scores += contains(error.what(), "a score below 0") ? 1 : 0;
      words += contains(error.what(), "a masked row after 100") ? 1 : 0;
    } catch (const Error&) {
      continue;  // codes that are not finite, or sums
    }
  }
  // Of 4 query heads: 12 heavy and 12 recent scores are not 0, and the last of two words has bits
  // for rows that are not there.
  EXPECT_EQ(scores, 4 * 24);
  EXPECT_EQ(words, 4);
}

}  // namespace
}  // namespace kve
