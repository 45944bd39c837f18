// What a KvCache holds; for the sources that implement it.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "cache/blocks/block_memory.h"
#include "cache/calibrated_bases.h"
#include "cache/fit_bases.h"
#include "cache/kept_head.h"
#include "cache/kv_cache.h"
#include "cache/page_bounds.h"
#include "cache/query_squares.h"
#include "cache/repeat.h"
#include "cache/select/selector.h"
#include "cache/shown_pages.h"
#include "cache/side_cache.h"
#include "cache/voters.h"

namespace kve {

inline constexpr int kMaxTokens = 1 << 30;  // far from overflow of any position

// The sides of a layer: of each kv head, or of all heads where these share pages.
using Sides = CountedVector<SideCache>;

// The rows of a layer.
struct LayerRows {
  LayerRows(Sides keys_, Sides values_, CountedVector<KeptHead> kept_)
      : keys(std::move(keys_)), values(std::move(values_)), kept(std::move(kept_)) {}

  // Of a kv head, committed and appended, dead ones too.
  int rows(int head) const {
    return kept.empty() ? keys[0].rows() : kept[static_cast<size_t>(head)].rows();
  }
  RowPositions positions(int head) const {
    return kept.empty() ? RowPositions(first_pos) : kept[static_cast<size_t>(head)].row_positions();
  }
  // Rows of tokens before position n.
  int rows_before(int n, int head) const {
    return kept.empty() ? std::max(0, n - first_pos)
                        : kept[static_cast<size_t>(head)].rows_before(n);
  }
  Sides& sides(bool of_values) { return of_values ? values : keys; }
  const Sides& sides(bool of_values) const { return of_values ? values : keys; }

  // visit(side, first kv head).
  template <class Visit>
  void each_side(const Visit& visit) {
    for (const bool of_values : {false, true}) {
      int head = 0;
      for (SideCache& side : sides(of_values)) {
        visit(side, head);
        head += side.setup().n_heads;
      }
    }
  }
  template <class Visit>
  void each_side(const Visit& visit) const {
    for (const bool of_values : {false, true}) {
      int head = 0;
      for (const SideCache& side : sides(of_values)) {
        visit(side, head);
        head += side.setup().n_heads;
      }
    }
  }

  Sides keys;
  Sides values;
  // [n_kv_heads] of a layer that a selector drops rows of; else empty, and all heads have the same.
  CountedVector<KeptHead> kept;
  int first_pos = 0;  // of row 0; sinks and whole pages before it were dropped by a window
};

struct LayerCache : LayerRows {
  // A setup for every side.
  LayerCache(std::span<const SideSetup> keys_setups, std::span<const SideSetup> values_setups,
             const LayerShape& shape, const Selector* selector,
             const std::shared_ptr<MemoryCounter>& counter);
  // Copying shares the pages and points the views at the copy.
  LayerCache(const LayerCache& other);
  LayerCache(LayerCache&&) noexcept = default;
  LayerCache& operator=(const LayerCache&) = delete;

  int n_heads() const { return static_cast<int>(views.size()); }

  // After any change to the sides.
  void refresh_views();
  // Heads that share pages, and so keep the same rows.
  int heads_per_group() const {
    return std::lcm(keys[0].setup().n_heads, values[0].setup().n_heads);
  }
  bool all_keys_fitted() const {
    return std::ranges::none_of(keys, [](const SideCache& side) { return side.bases().empty(); });
  }
  // Whether the selector wants what all queries gave the rows.
  bool weighs() const { return voters && voters->most() == 0 && !voters->wants_moments(); }
  // Drops pages of which every row is at a position below `keep_from`.
  void drop_before(int64_t keep_from) noexcept;

  CountedVector<HeadView> views;  // [n_kv_heads]
  // [n_kv_heads] where queries read some pages only; else empty.
  CountedVector<HeadBounds> bounds;
  QuerySquares queries;
  std::optional<Voters> voters;       // where a selector asks for queries
  std::optional<BlockMemory> blocks;  // of infllm, where the layer has no window
  int sinks = 0;
  int appended = 0;  // rows not committed
};

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
  void fit_seals(ThreadPool& pool, int n_new, int appended);
  // kv_cache_select.cpp: which rows go when n tokens are committed and `left` stay appended.
  bool waits_for_prompt() const {
    return spec.exact_prefill || spec.prunes_channels() || selector != nullptr;
  }
  bool drops_of_prompt(int n) const;
  bool is_selection_due(int n, bool prompt_goes_on) const;
  int tokens_until_selection() const;
  void count_votes(Backend& backend, int n);
  void select(Backend& backend, int n, int left, bool prompt_goes_on);
  std::vector<std::vector<int32_t>> choose(size_t index, int n, int left,
                                           std::span<const std::vector<float>> mass) const;
  std::vector<std::vector<std::vector<int32_t>>> choose_in_all_layers(int n) const;
  void mask_rows(LayerCache* layer, std::span<const std::vector<float>> weights, int left) const;
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
