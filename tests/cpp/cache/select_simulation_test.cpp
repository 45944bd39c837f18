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

}  // namespace
}  // namespace kve
