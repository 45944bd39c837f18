// What a cache holds of one layer.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "cache/blocks/block_memory.h"
#include "cache/kept_head.h"
#include "cache/kv_cache.h"
#include "cache/page_bounds.h"
#include "cache/query_masks.h"
#include "cache/query_squares.h"
#include "cache/select/selector.h"
#include "cache/side_cache.h"
#include "cache/voters.h"

namespace kve {

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
  // Whether it wants what the newest query gives them.
  bool weighs_newest() const { return voters && voters->most() == 1; }
  // Drops pages of which every row is at a position below `keep_from`.
  void drop_before(int64_t keep_from) noexcept;

  CountedVector<HeadView> views;     // [n_kv_heads]
  std::vector<float*> pending_mass;  // of KeptHead, of the pass at hand
  // [n_kv_heads] where queries read some pages only; else empty.
  CountedVector<HeadBounds> bounds;
  QuerySquares queries;
  QueryMasks masks;                   // of h2o_bench
  std::optional<Voters> voters;       // where a selector asks for queries
  std::optional<BlockMemory> blocks;  // of infllm, where the layer has no window
  int sinks = 0;
  int appended = 0;  // rows not committed
};

}  // namespace kve
