#include "cache/select/selector.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "cache/select/selectors.h"

namespace kve {
namespace {

// Everything stays.
class Full : public Selector {
 public:
  using Selector::Selector;
  int budget(const LayerPlace& /*place*/, int /*head*/) const override { return INT32_MAX; }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> /*heads*/,
             std::span<const std::span<float>> out) const override {
    for (const std::span<float> scores : out) std::ranges::fill(scores, kAlwaysKept);
  }
};

std::vector<int32_t> all_rows(size_t n) {
  std::vector<int32_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

// The row that top_rows() leaves out when it leaves out one: the newest of the worst.
int32_t worst_row(std::span<const float> scores) {
  constexpr size_t kLanes = 16;  // minima of their own, for vectors of any width
  std::array<float, kLanes> least;
  least.fill(scores[0]);
  size_t r = 0;
  for (; r + kLanes <= scores.size(); r += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) least[i] = std::min(least[i], scores[r + i]);
  }
  for (; r < scores.size(); ++r) least[0] = std::min(least[0], scores[r]);
  const auto worst = std::ranges::find(scores.rbegin(), scores.rend(), std::ranges::min(least));
  return static_cast<int32_t>(scores.rend() - worst) - 1;
}

std::vector<int32_t> all_but_worst(std::span<const float> scores) {
  std::vector<int32_t> rows = all_rows(scores.size());
  rows.erase(rows.begin() + worst_row(scores));
  return rows;
}

// Gives rows that are gone a score that never goes again; returns how many others there are, or -1
// where one of them counts among those that always stay.
int hide_dead(const uint64_t* dead, std::span<float> scores) {
  const size_t n = scores.size();
  int alive = static_cast<int>(n);
  for (size_t first = 0; first < n; first += 64) {
    uint64_t bits = dead[first / 64];
    if (n - first < 64) bits &= (uint64_t{1} << (n - first)) - 1;
    for (; bits != 0; bits &= bits - 1) {
      float& score = scores[first + static_cast<size_t>(std::countr_zero(bits))];
      if (score == kAlwaysKept) return -1;
      score = kAlwaysKept;
      --alive;
    }
  }
  return alive;
}

// Ada-KV (arXiv 2407.11550): a share alpha of its own budget is what every group has for its best
// rows.
void protect_best(double alpha, GroupScores* group) {
  const int own = std::min(group->budget, static_cast<int>(group->scores.size()));
  for (const int32_t row : top_rows(group->scores, static_cast<int>(own * alpha))) {
    group->scores[static_cast<size_t>(row)] = kAlwaysKept;
  }
}

}  // namespace

int Selector::budget(const LayerPlace& place, int /*head*/) const {
  if (spec_.tokens > 0) return spec_.tokens;
  return std::max(1, static_cast<int>(place.n_budget_tokens * spec_.share));
}

int Selector::recent(const LayerPlace& /*place*/, int /*head*/) const { return spec_.recent; }

std::vector<int32_t> top_rows(std::span<const float> scores, int n) {
  if (n >= static_cast<int>(scores.size())) return all_rows(scores.size());
  std::vector<int32_t> rows;
  if (n <= 0) return rows;
  if (n == static_cast<int>(scores.size()) - 1) return all_but_worst(scores);
  rows.reserve(static_cast<size_t>(n));
  std::vector<float> ordered(scores.begin(), scores.end());
  const auto last = ordered.begin() + n - 1;
  std::nth_element(ordered.begin(), last, ordered.end(), std::greater());
  const float least = *last;
  // Of rows as good as the last one, the older.
  auto as_good = n - std::ranges::count_if(scores, [&](float score) { return score > least; });
  for (size_t r = 0; r < scores.size(); ++r) {
    if (scores[r] > least || (scores[r] == least && as_good-- > 0)) {
      rows.push_back(static_cast<int32_t>(r));
    }
  }
  return rows;
}

std::vector<GroupScores> score_groups(const Selector& selector, const LayerPlace& place,
                                      std::span<const HeadRows> heads, int heads_per_group) {
  KVE_ASSERT(heads_per_group > 0 && heads.size() % static_cast<size_t>(heads_per_group) == 0);
  std::vector<std::vector<float>> scores;
  for (const HeadRows& head : heads) scores.emplace_back(head.positions.size());
  const std::vector<std::span<float>> views(scores.begin(), scores.end());
  selector.score(place, heads, views);

  const size_t group = static_cast<size_t>(heads_per_group);
  std::vector<GroupScores> out(heads.size() / group);
  for (size_t g = 0; g < out.size(); ++g) {
    const HeadRows& rows = heads[g * group];
    const int first = static_cast<int>(g * group);
    std::vector<float>& means = out[g].scores;
    means.resize(rows.positions.size());
    int kept = 0;
    int recent = 0;
    for (int h = first; h < first + heads_per_group; ++h) {
      kept = std::max(kept, selector.budget(place, h));
      recent = std::max(recent, selector.recent(place, h));
      const std::vector<float>& own = scores[static_cast<size_t>(h)];
      KVE_ASSERT(own.size() == means.size());
      for (size_t r = 0; r < means.size(); ++r) means[r] += own[r];
    }
    int always = 0;
    for (float& mean : means) mean = orderly(mean / static_cast<float>(heads_per_group));
    const auto row_of = [&](int position) {
      return std::ranges::lower_bound(rows.positions, position) - rows.positions.begin();
    };
    std::fill(means.begin(), means.begin() + row_of(selector.spec().sinks), kAlwaysKept);
    std::fill(means.begin() + row_of(place.n_tokens - recent), means.end(), kAlwaysKept);
    for (const float mean : means) always += mean == kAlwaysKept;
    // A share of a short prompt never cuts into sinks and recent tokens.
    out[g].budget = std::max(kept, always);
    out[g].n_heads = heads_per_group;
  }
  return out;
}

std::vector<std::vector<int32_t>> choose_together(std::span<const GroupScores> groups) {
  int unit = 0;
  for (const GroupScores& group : groups) unit = std::gcd(unit, group.n_heads);
  // A row is there as often as it costs.
  const auto cost = [&](const GroupScores& group) { return group.n_heads / unit; };
  int64_t left = 0;
  std::vector<float> all;
  for (const GroupScores& group : groups) {
    left += int64_t{cost(group)} * std::min<int64_t>(group.budget, std::ssize(group.scores));
    for (const float score : group.scores) {
      all.insert(all.end(), static_cast<size_t>(cost(group)), score);
    }
  }
  if (all.size() > INT32_MAX) {
    throw CapacityError(message("cache: expected at most ", INT32_MAX,
                                " rows that compete for one budget, found ", all.size()));
  }
  left = std::max<int64_t>(left, std::ranges::count(all, kAlwaysKept));
  std::vector<std::vector<int32_t>> out(groups.size());
  size_t g = 0;
  int64_t first = 0;
  for (const int32_t at : top_rows(all, static_cast<int>(left))) {
    while (at - first >= cost(groups[g]) * std::ssize(groups[g].scores)) {
      first += cost(groups[g]) * std::ssize(groups[g].scores);
      ++g;
    }
    const auto row = static_cast<int32_t>((at - first) / cost(groups[g]));
    if (out[g].empty() || out[g].back() != row) out[g].push_back(row);
  }
  return out;
}

std::vector<std::vector<int32_t>> choose_rows(const Selector& selector, const LayerPlace& place,
                                              std::span<const HeadRows> heads,
                                              int heads_per_group) {
  std::vector<std::vector<int32_t>> out;
  if (selector.is_too_short(place.n_tokens)) {
    for (size_t h = 0; h < heads.size(); h += static_cast<size_t>(heads_per_group)) {
      out.push_back(all_rows(heads[h].positions.size()));
    }
    return out;
  }
  std::vector<GroupScores> groups = score_groups(selector, place, heads, heads_per_group);
  if (selector.spec().joint) {
    for (GroupScores& group : groups) protect_best(selector.spec().alpha, &group);
    return choose_together(groups);
  }
  for (const GroupScores& group : groups) out.push_back(top_rows(group.scores, group.budget));
  return out;
}

std::optional<std::vector<int32_t>> worst_rows(const Selector& selector, const LayerPlace& place,
                                               std::span<const HeadRows> heads,
                                               std::span<const uint64_t* const> dead,
                                               int heads_per_group) {
  if (!selector.scores_rows_alone() || selector.spec().joint) return std::nullopt;
  if (selector.is_too_short(place.n_tokens)) return std::nullopt;
  std::vector<GroupScores> groups = score_groups(selector, place, heads, heads_per_group);
  std::vector<int32_t> out;
  for (size_t g = 0; g < groups.size(); ++g) {
    const int alive = hide_dead(dead[g * static_cast<size_t>(heads_per_group)], groups[g].scores);
    const int surplus = alive - groups[g].budget;
    if (alive < 0 || surplus > 1) return std::nullopt;
    out.push_back(surplus == 1 ? worst_row(groups[g].scores) : -1);
  }
  return out;
}

std::unique_ptr<Selector> make_selector(const SelectorSpec& spec, int n_layers, int n_kv_heads,
                                        RowScorer scorer) {
  using Kind = SelectorSpec::Kind;
  if (scorer && spec.kind != Kind::custom) {
    throw ConfigError("cache: expected the selector custom for a scorer, found another or none");
  }
  switch (spec.kind) {
    case Kind::full:
    case Kind::quest:
    case Kind::infllm:  // cache/blocks/
      return std::make_unique<Full>(spec);
    case Kind::window:
    case Kind::streaming:
      return make_window(spec);
    case Kind::h2o:
    case Kind::h2o_realdrop:
      return make_h2o(spec);
    case Kind::snapkv:
      return make_snapkv(spec);
    case Kind::pyramidkv:
      return make_pyramidkv(spec);
    case Kind::tova:
      return make_tova(spec);
    case Kind::observed:
      return make_observed(spec);
    case Kind::knorm:
      return make_knorm(spec);
    case Kind::keydiff:
      return make_keydiff(spec);
    case Kind::expected:
      return make_expected(spec);
    case Kind::random:
      return make_random(spec);
    case Kind::h2o_bench:
      return make_h2o_bench(spec);
    case Kind::custom:
      return make_custom(spec, std::move(scorer));
    case Kind::kvzip:
      return make_kvzip(spec);
    case Kind::duo:
      return make_duo(spec, n_layers, n_kv_heads);
  }
  return nullptr;
}

}  // namespace kve
