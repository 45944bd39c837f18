// What a KvCache holds; for the sources that implement it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "cache/calibrated_bases.h"
#include "cache/fit_bases.h"
#include "cache/kv_cache.h"
#include "cache/layer_cache.h"
#include "cache/repeat.h"
#include "cache/select/selector.h"
#include "cache/shown_pages.h"

namespace kve {

inline constexpr int kMaxTokens = 1 << 30;  // far from overflow of any position

// Sides of one layer that are about to seal their n oldest rows.
struct LayerSeal {
  LayerRows* rows;
  const LayerCache* layer;
  bool values;
  size_t first;  // sides
  size_t count;
  int n;
  std::vector<BasisData> fitted;  // fit_bases()

  std::span<SideCache> sides() const {
    return std::span<SideCache>(rows->sides(values)).subspan(first, count);
  }
  int first_head() const {
    return static_cast<int>(first) * rows->sides(values)[0].setup().n_heads;
  }
};

struct Selected {
  size_t layer;
  LayerRows rows;  // once a selection is committed
};

struct KvCache::State {
  State(const CacheSpec& spec, std::vector<LayerShape> shapes, RowScorer scorer,
        std::shared_ptr<MemoryCounter> counter);
  State(const State& other);

  // Bases that need no rows are shared by all sides with rows of their size.
  std::shared_ptr<const Basis> shared_basis(const ProjectorSpec& projector, int dim);
  std::shared_ptr<const Basis> latent_basis(const SideSetup& side, size_t layer, int head);
  // Whether rows are coefficients in bases that a file or the model has.
  bool is_latent(const SideSpec& side, size_t layer) const;
  int heads_per_side(const SideSpec& side, size_t layer) const;
  bool has_blocks(size_t layer) const {
    return spec.selector.uses_blocks() && shapes[layer].window == 0;
  }
  SideSetup setup(size_t layer, int head, bool values);
  BlockSetup block_setup(size_t layer);
  void make_blocks(size_t layer);
  std::vector<SideSetup> setups(size_t layer, bool values);
  void add_klt_bases(size_t layer, std::span<SideSetup> sides);
  void check_rules() const;
  // Runs `work`, and again as long as it lacks memory but pages can go down a tier; `undo` makes
  // what is left of a failed run good.
  template <class Work, class Undo>
  void with_room(Backend& backend, const Work& work, const Undo& undo) {
    for (;;) {
      try {
        return work();
      } catch (const CapacityError&) {
        undo();
        if (!lower_oldest(backend)) throw;
      }
    }
  }
  // Pages whose rows have the age go down, until one cannot for lack of memory.
  void lower_aged(Backend& backend, int n_committed);
  // The ripest page of all sides goes down (of several sides, where they are as ripe); false when
  // all that would give memory free are in their last tier.
  bool lower_oldest(Backend& backend);
  void begin_seals(Backend& backend, int n, int appended);
  void plan_seals(int appended);
  void plan_seals(LayerRows* rows, const LayerCache* layer, int appended);
  void fit_seals(Backend& backend, int n_new, int appended);
  // kv_cache_select.cpp: which rows go when n tokens are committed and `left` stay appended.
  bool waits_for_prompt() const {
    return spec.exact_prefill || spec.prunes_channels() || selector != nullptr;
  }
  bool drops_of_prompt(int n) const;
  bool is_selection_due(int n, bool prompt_goes_on) const;
  int tokens_until_selection() const;
  bool weighs_at_once(const LayerCache& layer, int64_t n_queries) const;
  std::span<float* const> pending_mass(LayerCache* layer, int64_t n_queries) const;
  void count_votes(Backend& backend, int n);
  void select(Backend& backend, int n, int left, bool prompt_goes_on);
  LayerPlace place_of(size_t index, int n) const;
  bool drop_worst(size_t index, int n, int left, std::span<const std::vector<float>> mass);
  std::vector<std::vector<int32_t>> choose(size_t index, int n, int left,
                                           std::span<const std::vector<float>> mass) const;
  std::vector<std::vector<std::vector<int32_t>>> choose_in_all_layers(int n) const;
  std::optional<LayerRows> drop_others(LayerCache* layer,
                                       std::span<const std::vector<int32_t>> chosen, int left);
  bool is_observing(const LayerCache& layer) const {
    return layer.voters && (prompt_tokens == 0 || spec.selector.interval > 0);
  }
  void finish_selection(int n) noexcept;
  void forget_choice() noexcept;  // select() did not get to its end
  void cancel_selection() noexcept;
  void make_selector();
  // kv_cache_pages.cpp: reading some pages only.
  void make_bounds();
  void extend_bounds(Backend& backend, LayerCache* layer, int n);
  // Tokens that a query sees of n_rows, its own included.
  int tokens_shown(int n_rows) const;
  bool shows_some(const LayerCache& layer, int n_queries) const;
  void show_pages(const Backend& backend, const AttendParams& params, const LayerCache& layer,
                  ConstMat q, int query, int kv_head);
  // kv_cache_masks.cpp: rows of each query head. Valid until the next call.
  bool masks_queries() const { return spec.selector.kind == SelectorSpec::Kind::h2o_bench; }
  std::span<const HeadView> views_of_queries(LayerCache* layer, int n_heads);
  std::vector<std::vector<float>> weigh_queries(Backend& backend, LayerCache* layer, int n);
  void mask_rows(LayerCache* layer, std::span<const std::vector<float>> weights, int left) const;
  void weigh_values(const ValueNorms& norms);  // kv_cache_repeat.cpp
  void attend_masked(Backend& backend, AttendParams params, LayerCache* layer,
                     const AttendTask& queries);
  // When the cache is truncated to n tokens.
  void forget_selection(LayerCache* layer, int n) noexcept;
  void forget_selection(int n) noexcept;
  LayerRows* rows_of(size_t layer);
  void reserve_jobs();
  void release_jobs() noexcept;

  CacheSpec spec;
  std::vector<LayerShape> shapes;
  std::shared_ptr<MemoryCounter> counter;
  int64_t live_before_commit = 0;  // bytes
  CountedVector<LayerCache> layers;
  struct SharedBasis {
    ProjectorSpec projector;
    int dim;
    std::shared_ptr<const Basis> basis;
  };
  std::vector<SharedBasis> shared;
  std::optional<CalibratedBases> file;               // of CacheSpec::bases
  std::vector<std::shared_ptr<const Basis>> latent;  // all that were made of `file` or the model
  int n_tokens = 0;
  CountedVector<LayerSeal> seals;            // of the commit at hand
  SealJobs jobs;                             // kept, so that a decode step allocates nothing
  RowScorer scorer;                          // of the selector `custom`
  std::shared_ptr<const Selector> selector;  // null: every token stays
  std::optional<Repeat> repeat;
  std::vector<Selected> selected;  // of the commit at hand
  bool selecting = false;          // the commit at hand
  bool ends_prompt = false;
  bool in_prompt = false;                 // more of what was committed last is to follow
  bool prompt_follows = false;            // of the commit at hand
  bool closes_prompt = false;             // the commit at hand; passes of few tokens are no prompt
  int prompt_tokens = 0;                  // of the first prompt, once it was selected from
  int selected_at = 0;                    // tokens seen at the latest selection
  int dropped_at = 0;                     // and at the latest that dropped some
  int shift = 0;                          // tokens seen, less the position of the next one
  int next_shift = 0;                     // when the commit at hand is finished
  ShownPages shown;                       // of the pass at hand
  std::vector<Scratch> bounds_scratch;    // of each kv head
  std::shared_ptr<BlockFile> block_file;  // null unless blocks lie in a file
  std::unique_ptr<BlockWork> block_work;  // null unless there are blocks
};

// "layer 3, kv head 1, keys": how messages name a side.
std::string side_name(size_t layer, int head, bool values);

}  // namespace kve
