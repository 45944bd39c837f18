// What a KvCache holds; for the sources that implement it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/calibrated_bases.h"
#include "cache/fit_bases.h"
#include "cache/kv_cache.h"
#include "cache/query_squares.h"
#include "cache/side_cache.h"

namespace kve {

inline constexpr int kMaxTokens = 1 << 30;  // far from overflow of any position

// The sides of a layer: of each kv head, or of all heads where these share pages.
using Sides = CountedVector<SideCache>;

struct LayerCache {
  // A setup for every side.
  LayerCache(std::span<const SideSetup> keys_setups, std::span<const SideSetup> values_setups,
             const LayerShape& shape, const std::shared_ptr<MemoryCounter>& counter);
  // Copying shares the pages and points the views at the copy.
  LayerCache(const LayerCache& other);
  LayerCache(LayerCache&&) noexcept = default;
  LayerCache& operator=(const LayerCache&) = delete;

  int n_heads() const { return static_cast<int>(views.size()); }
  int rows() const { return keys[0].rows(); }

  // After any change to the sides.
  void refresh_views();
  void truncate_appended(int n_rows) noexcept;
  // Drops pages of which every row is at a position below `keep_from`.
  void drop_before(int64_t keep_from) noexcept;

  template <class Visit>
  void each_side(const Visit& visit) {
    for (SideCache& side : keys) visit(side);
    for (SideCache& side : values) visit(side);
  }
  template <class Visit>
  void each_side(const Visit& visit) const {
    for (const SideCache& side : keys) visit(side);
    for (const SideCache& side : values) visit(side);
  }

  Sides keys;
  Sides values;
  CountedVector<HeadView> views;  // [n_kv_heads]
  QuerySquares queries;
  int sinks = 0;
  int first_pos = 0;  // of row 0; sinks and whole pages before it were dropped
  int appended = 0;   // rows not committed
};

// The sides of one layer that are about to seal their n oldest rows.
struct LayerSeal {
  LayerCache* layer;
  bool values;
  int n;
  std::vector<BasisData> fitted;  // fit_bases()

  Sides& sides() const { return values ? layer->values : layer->keys; }
};

struct KvCache::State {
  State(const CacheSpec& spec, std::vector<LayerShape> shapes,
        std::shared_ptr<MemoryCounter> counter);
  State(const State& other);

  // Bases that need no rows are shared by all sides with rows of their size.
  std::shared_ptr<const Basis> shared_basis(const ProjectorSpec& projector, int dim);
  std::shared_ptr<const Basis> latent_basis(const SideSetup& side, size_t layer, int head);
  // Whether rows are coefficients in bases that a file or the model has.
  bool is_latent(const SideSpec& side, size_t layer) const;
  int heads_per_side(const SideSpec& side, size_t layer) const;
  SideSetup setup(size_t layer, int head, bool values);
  std::vector<SideSetup> setups(size_t layer, bool values);
  void check_rules() const;
  void plan_seals(int appended);
  void fit_seals(ThreadPool& pool, int n_new);
  void reserve_jobs();
  void release_jobs() noexcept;

  CacheSpec spec;
  std::vector<LayerShape> shapes;
  std::shared_ptr<MemoryCounter> counter;
  CountedVector<LayerCache> layers;
  struct SharedBasis {
    ProjectorSpec projector;
    int dim;
    std::shared_ptr<const Basis> basis;
  };
  std::vector<SharedBasis> shared;
  std::optional<CalibratedBases> file;               // of CacheSpec::bases
  std::vector<std::shared_ptr<const Basis>> latent;  // all that latent_basis() made
  int n_tokens = 0;
  CountedVector<LayerSeal> seals;  // of the commit at hand
  SealJobs jobs;                   // kept, so that a decode step allocates nothing
};

// "layer 3, kv head 1, keys": how messages name a side.
std::string side_name(size_t layer, int head, bool values);

}  // namespace kve
