// What a KvCache holds; for the sources that implement it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/side_cache.h"

namespace kve {

inline constexpr int kMaxTokens = 1 << 30;  // far from overflow of any position

struct LayerCache {
  LayerCache(const CacheSpec& spec, const LayerShape& shape,
             const std::shared_ptr<MemoryCounter>& counter);
  // Copying shares the pages and points the views at the copy.
  LayerCache(const LayerCache& other);
  LayerCache(LayerCache&&) noexcept = default;
  LayerCache& operator=(const LayerCache&) = delete;

  int n_heads() const { return static_cast<int>(views.size()); }
  int rows() const { return sides[0].rows(); }
  const SideCache& keys(int head) const { return sides[static_cast<size_t>(2 * head)]; }
  const SideCache& values(int head) const { return sides[static_cast<size_t>(2 * head + 1)]; }

  // After any change to the sides.
  void refresh_views();
  void truncate_rows(int n_rows) noexcept;
  // Drops pages of which every row is at a position below `keep_from`.
  void drop_before(int64_t keep_from) noexcept;

  CountedVector<SideCache> sides;  // of head h: keys 2h, values 2h + 1
  CountedVector<HeadView> views;   // [n_kv_heads]
  int first_pos = 0;               // of row 0; whole pages before it were dropped
  int appended = 0;                // rows not committed
};

struct KvCache::State {
  State(const CacheSpec& spec, std::vector<LayerShape> shapes,
        std::shared_ptr<MemoryCounter> counter);
  State(const State& other);

  CacheSpec spec;
  std::vector<LayerShape> shapes;
  std::shared_ptr<MemoryCounter> counter;
  CountedVector<LayerCache> layers;
  int n_tokens = 0;
  std::vector<SealJob> jobs;  // kept, so that a decode step allocates nothing
};

// "layer 3, kv head 1, keys": how messages name a side.
std::string side_name(size_t layer, size_t side);

}  // namespace kve
