// cache/select/: which tokens stay. A selector gives every stored row of a kv head a score and
// every head a budget; the rows of the highest scores stay. Selectors are pure functions of what
// HeadRows shows; cache/kv_cache_select.cpp decides when they run and drops the rows.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/span.h"
#include "cache/select/selector_spec.h"

namespace kve {

// The score of a row that stays whatever the others' scores are.
inline constexpr float kAlwaysKept = std::numeric_limits<float>::infinity();
// A score that orders: NaN, of rows that hold no finite numbers, is the lowest.
inline float orderly(float score) { return score == score ? score : -kAlwaysKept; }

// The rows of one kv head, oldest first. Views that a selector did not ask for (needs()) may be
// empty.
struct HeadRows {
  std::span<const int32_t> positions;  // [n] rising
  ConstMat keys;                       // [n, key_dim] as attention sees them
  ConstMat values;                     // [n, value_dim]
  // Softmax probabilities [n] that each row got, summed over queries (of the selector's window, or
  // over all so far) and over the query heads of the group.
  std::span<const float> mass;
  int n_queries = 0;       // that mass was summed over, of each query head
  int group = 1;           // query heads
  ConstMat queries;        // [n_queries, group * key_dim] the voters, oldest first
  ConstMat future_means;   // [group, key_dim] of future queries, rotated as keys are
  ConstMat future_spread;  // [group * key_dim, key_dim] their covariances, one below the other

  int n() const { return static_cast<int>(positions.size()); }
};

// Where a layer stands.
struct LayerPlace {
  int layer = 0;
  int n_layers = 1;
  int n_tokens = 0;         // seen so far: positions are below this
  int n_budget_tokens = 0;  // of which budgets are a share: those of the prompt
};

struct HeadPlace {
  int layer = 0;
  int kv_head = 0;
};
// Scores rows for `custom`: higher stays; what is not a number goes first. May throw.
using RowScorer = std::function<void(const HeadPlace&, const HeadRows&, std::span<float> scores)>;

class Selector {
 public:
  enum Need : unsigned { nothing = 0, keys = 1, values = 2, mass = 4, future = 8, queries = 16 };

  explicit Selector(const SelectorSpec& spec) : spec_(spec) {}
  virtual ~Selector() = default;

  const SelectorSpec& spec() const { return spec_; }
  virtual unsigned needs() const { return nothing; }
  // Whether `mass` is, of each row, the largest weight that a token gave it while the prompt was
  // read once more (KvCache::begin_repeat), and rows of all layers compete for the budgets of all.
  virtual bool repeats_prompt() const { return false; }
  // Whether several layers may be scored at once.
  virtual bool is_thread_safe() const { return true; }
  // Whether a row's score does not depend on which others there are, and needs() nothing but mass:
  // rows that are gone may then be among them.
  virtual bool scores_rows_alone() const { return false; }
  // The queries whose weights make up `mass`: so many newest, or all when 0.
  virtual int voters() const { return 0; }
  // Rows that a head may keep: at least 1, sinks and recent tokens included.
  virtual int budget(const LayerPlace& place, int head) const;
  // Tokens that are always kept: the newest so many.
  virtual int recent(const LayerPlace& place, int head) const;
  // Whether nothing of a prompt of n tokens is to be dropped, since it is too short to judge.
  virtual bool is_too_short(int n_tokens) const { return n_tokens < 1; }
  // Scores of the rows of all kv heads of a layer: out[h] [heads[h].n()]. Sinks and recent tokens
  // need no attention: they are kept by choose_rows().
  virtual void score(const LayerPlace& place, std::span<const HeadRows> heads,
                     std::span<const std::span<float>> out) const = 0;

 protected:
  SelectorSpec spec_;
};

// The `n` rows of the highest scores, none of them NaN, rising; of equal ones the older. All when n
// is that large.
std::vector<int32_t> top_rows(std::span<const float> scores, int n);

// Kv heads that keep the same rows: the mean of their scores, none of them NaN, and how many rows
// may stay.
struct GroupScores {
  std::vector<float> scores;  // [n]
  int budget = 0;
  int n_heads = 1;
};
// Of each group of heads_per_group heads. Budgets are no less than the rows that always stay.
std::vector<GroupScores> score_groups(const Selector& selector, const LayerPlace& place,
                                      std::span<const HeadRows> heads, int heads_per_group = 1);
// The rows that stay of each group, rising, where rows of all groups compete for the sum of their
// budgets; what rows cost is the heads that keep them. Of equal rows those of the first groups
// stay.
std::vector<std::vector<int32_t>> choose_together(std::span<const GroupScores> groups);

// The rows that stay, for each group of heads_per_group heads, which keep the same ones: their
// scores are averaged first. Rising.
std::vector<std::vector<int32_t>> choose_rows(const Selector& selector, const LayerPlace& place,
                                              std::span<const HeadRows> heads,
                                              int heads_per_group = 1);

// What choose_rows() comes to once budgets are used up and a token comes: the row of each group
// that goes, -1 where none does. Here `heads` show rows that are gone, too, whose bits in
// dead[head] (as HeadView::dead) are set. Nothing where more rows go, or where scores are not of
// rows alone.
std::optional<std::vector<int32_t>> worst_rows(const Selector& selector, const LayerPlace& place,
                                               std::span<const HeadRows> heads,
                                               std::span<const uint64_t* const> dead,
                                               int heads_per_group = 1);

// Throws ConfigError when `custom` has no scorer or another one has, FormatError and IoError when a
// file that the spec names cannot be used for a model of these sizes.
std::unique_ptr<Selector> make_selector(const SelectorSpec& spec, int n_layers, int n_kv_heads,
                                        RowScorer scorer = {});

}  // namespace kve
