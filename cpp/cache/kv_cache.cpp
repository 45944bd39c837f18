#include "cache/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "cache/kv_cache_state.h"

namespace kve {
namespace {

constexpr int kMaxHeads = 1 << 16;
constexpr int kMaxDim = 1 << 16;

void check_range(std::string_view what, size_t layer, int64_t value, int low, int high) {
  if (value < low || value > high) {
    throw ConfigError(message("cache of layer ", layer, ": ", what, ": expected ", low, " to ",
                              high, ", found ", value));
  }
}

void check_side(const SideSpec& side, std::string_view what, size_t layer, int dim) {
  check_range(what, layer, dim, 1, kMaxDim);
  const CacheCodec& c = codec(side.codec.id);
  const int group = side.codec.group;
  check_range("tail", layer, side.tail, 0, kMaxTail);
  const bool known = c.group_is_free
                         ? std::ranges::find(kCacheGroups, group) != std::end(kCacheGroups)
                         : group == c.default_group;
  if (!known) {
    throw ConfigError(message("cache ", c.name, ": group ", group, " is not one it has"));
  }
  if (group == 0 || dim % group == 0) return;
  std::string fitting;
  for (const int other : kCacheGroups) {
    if (dim % other == 0) fitting += message(fitting.empty() ? "" : ", ", other);
  }
  std::string advice = "no group divides it";
  if (!fitting.empty()) {
    advice = c.group_is_free ? message("groups that divide it: ", fitting)
                             : message("int8 and int4 do with group=", fitting);
  }
  throw ConfigError(message("cache ", side.str(), " does not fit layer ", layer, ": ", what, " ",
                            dim, " is not a multiple of ", group, "; ", advice));
}

// Where the first value of k or v that is not finite stands. `first_pos` is the position of row 0.
std::string locate_not_finite(int layer, int n_heads, int first_pos, ConstMat k, ConstMat v) {
  for (int64_t row = 0; row < k.rows; ++row) {
    for (int side = 0; side < 2 * n_heads; ++side) {
      const ConstMat& m = side % 2 == 0 ? k : v;
      const int64_t dim = m.cols / n_heads;
      for (int64_t i = 0; i < dim; ++i) {
        const float value = m.row(row)[side / 2 * dim + i];
        if (std::isfinite(value)) continue;
        return message(side_name(static_cast<size_t>(layer), static_cast<size_t>(side)), ", token ",
                       first_pos + row, ": expected finite values, found ",
                       std::isnan(value) ? "NaN" : "infinity", " in channel ", i);
      }
    }
  }
  return message("layer ", layer, ": the backend refused finite values");
}

// A window layer keeps one window more than it attends to, so that a chat turn can be taken back.
int64_t oldest_kept(int window, int n_tokens) { return int64_t{n_tokens} - 2 * int64_t{window}; }

// The first position that a token at position n attends to.
int64_t oldest_visible(int window, int n) { return std::max<int64_t>(0, int64_t{n} - window + 1); }

}  // namespace

std::string side_name(size_t layer, size_t side) {
  return message("layer ", layer, ", kv head ", side / 2, ", ", side % 2 == 0 ? "keys" : "values");
}

LayerCache::LayerCache(const CacheSpec& spec, const LayerShape& shape,
                       const std::shared_ptr<MemoryCounter>& counter)
    : sides(CountedAllocator<SideCache>(counter)), views(CountedAllocator<HeadView>(counter)) {
  const auto heads = static_cast<size_t>(shape.n_kv_heads);
  sides.reserve(2 * heads);
  for (size_t head = 0; head < heads; ++head) {
    sides.emplace_back(spec.k, shape.key_dim, counter);
    sides.emplace_back(spec.v, shape.value_dim, counter);
  }
  views.resize(heads);
  refresh_views();
}

LayerCache::LayerCache(const LayerCache& other)
    : sides(other.sides), views(other.views), first_pos(other.first_pos), appended(other.appended) {
  refresh_views();
}

void LayerCache::refresh_views() {
  for (int head = 0; head < n_heads(); ++head) {
    views[static_cast<size_t>(head)] = {.k = keys(head).view(),
                                        .v = values(head).view(),
                                        .n_rows = keys(head).rows(),
                                        .first_pos = first_pos};
  }
}

void LayerCache::truncate_rows(int n_rows) noexcept {
  for (SideCache& side : sides) side.truncate(n_rows);
}

void LayerCache::drop_before(int64_t keep_from) noexcept {
  // Both sides must start at the same row, and may have sealed different numbers of pages.
  int64_t n_pages = (keep_from - first_pos) / kPageTokens;
  for (const SideCache& side : sides) {
    n_pages = std::min<int64_t>(n_pages, side.pages().full_pages());
  }
  if (n_pages <= 0) return;
  for (SideCache& side : sides) side.drop_front(static_cast<int>(n_pages));
  first_pos += static_cast<int>(n_pages) * kPageTokens;
}

KvCache::State::State(const CacheSpec& spec_, std::vector<LayerShape> shapes_,
                      std::shared_ptr<MemoryCounter> counter_)
    : spec(spec_),
      shapes(std::move(shapes_)),
      counter(std::move(counter_)),
      layers(CountedAllocator<LayerCache>(counter)) {
  layers.reserve(shapes.size());
  for (const LayerShape& shape : shapes) layers.emplace_back(spec, shape, counter);
}

KvCache::State::State(const State& other)
    : spec(other.spec),
      shapes(other.shapes),
      counter(other.counter),
      layers(other.layers),
      n_tokens(other.n_tokens) {}

KvCache::KvCache(const CacheSpec& spec, std::vector<LayerShape> layers) {
  for (size_t i = 0; i < layers.size(); ++i) {
    check_range("n_kv_heads", i, layers[i].n_kv_heads, 1, kMaxHeads);
    check_range("window", i, layers[i].window, 0, INT32_MAX);
    check_side(spec.k, "key_dim", i, layers[i].key_dim);
    check_side(spec.v, "value_dim", i, layers[i].value_dim);
  }
  state_ = std::make_unique<State>(spec, std::move(layers), std::make_shared<MemoryCounter>());
}

KvCache::KvCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

const CacheSpec& KvCache::spec() const { return state_->spec; }
std::span<const LayerShape> KvCache::layers() const { return state_->shapes; }
int KvCache::n_tokens() const { return state_->n_tokens; }
const MemoryCounter& KvCache::memory() const { return *state_->counter; }

void KvCache::append(Backend& backend, int layer, ConstMat k, ConstMat v) {
  LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  const LayerShape& shape = state_->shapes[static_cast<size_t>(layer)];
  KVE_ASSERT(k.rows == v.rows && k.cols == int64_t{shape.n_kv_heads} * shape.key_dim &&
             v.cols == int64_t{shape.n_kv_heads} * shape.value_dim);
  if (k.rows == 0) return;
  const int first_new = state_->n_tokens + cache.appended;
  if (k.rows > kMaxTokens - first_new) {
    throw CapacityError(
        message("cache: expected at most ", kMaxTokens, " tokens, found ", first_new + k.rows));
  }
  const int before = cache.rows();
  std::vector<SealJob>& jobs = state_->jobs;
  jobs.clear();
  try {
    for (int head = 0; head < shape.n_kv_heads; ++head) {
      const auto side = static_cast<size_t>(2 * head);
      cache.sides[side].append(k.columns(int64_t{head} * shape.key_dim, shape.key_dim), &jobs);
      cache.sides[side + 1].append(v.columns(int64_t{head} * shape.value_dim, shape.value_dim),
                                   &jobs);
    }
    if (backend.seal(jobs) >= 0) {
      throw Error(locate_not_finite(layer, shape.n_kv_heads, first_new, k, v));
    }
  } catch (...) {
    cache.truncate_rows(before);
    cache.refresh_views();
    throw;
  }
  cache.appended += static_cast<int>(k.rows);
  cache.refresh_views();
}

std::span<const HeadView> KvCache::view(int layer) const {
  return state_->layers.at(static_cast<size_t>(layer)).views;
}

void KvCache::commit(Backend& backend, int n) {
  prepare_commit(backend, n);
  finish_commit(n);
}

void KvCache::prepare_commit(Backend& backend, int n) {
  State& s = *state_;
  const int left = s.layers.empty() ? 0 : s.layers[0].appended - n;
  KVE_ASSERT(n >= 0 && left >= 0);
  for (const LayerCache& layer : s.layers) KVE_ASSERT(layer.appended == n + left);
  s.jobs.clear();
  try {
    for (LayerCache& layer : s.layers) {
      for (SideCache& side : layer.sides) side.begin_seal(left, &s.jobs);
    }
    // append() let only finite rows into the tails.
    if (!s.jobs.empty() && backend.seal(s.jobs) >= 0) {
      throw Error("cache: the backend refused to code finite values");
    }
  } catch (...) {
    rollback();
    throw;
  }
}

void KvCache::finish_commit(int n) noexcept {
  State& s = *state_;
  s.n_tokens += n;
  for (size_t i = 0; i < s.layers.size(); ++i) {
    LayerCache& layer = s.layers[i];
    layer.appended -= n;
    for (SideCache& side : layer.sides) side.finish_seal();
    if (s.shapes[i].window > 0) layer.drop_before(oldest_kept(s.shapes[i].window, s.n_tokens));
    layer.refresh_views();
  }
}

void KvCache::rollback() {
  for (LayerCache& layer : state_->layers) {
    for (SideCache& side : layer.sides) side.cancel_seal();
    if (layer.appended == 0) continue;
    layer.truncate_rows(layer.rows() - layer.appended);
    for (SideCache& side : layer.sides) side.release_spare();
    layer.appended = 0;
    layer.refresh_views();
  }
}

int KvCache::tokens_until_seal() const {
  int least = kMaxTokens;
  for (const LayerCache& layer : state_->layers) {
    for (const SideCache& side : layer.sides) {
      least = std::min(least, side.rows_until_seal(layer.appended));
    }
  }
  return least;
}

bool KvCache::can_truncate(int n) const {
  const State& s = *state_;
  if (n < 0 || n > s.n_tokens) return false;
  if (n == 0 || n == s.n_tokens) return true;
  for (size_t i = 0; i < s.layers.size(); ++i) {
    if (s.layers[i].first_pos > 0 &&
        s.layers[i].first_pos > oldest_visible(s.shapes[i].window, n)) {
      return false;
    }
  }
  return true;
}

void KvCache::truncate(int n) {
  State& s = *state_;
  if (n < 0 || n > s.n_tokens) {
    throw ConfigError(message("cache: cannot truncate to ", n, " tokens, it holds ", s.n_tokens));
  }
  if (!can_truncate(n)) {
    throw CapacityError(message("cache: cannot go back from ", s.n_tokens, " to ", n,
                                " tokens: layers with a sliding window no longer hold the rows "
                                "before it"));
  }
  rollback();
  for (LayerCache& layer : s.layers) {
    if (n == 0) layer.first_pos = 0;
    layer.truncate_rows(n - layer.first_pos);
    layer.refresh_views();
  }
  s.n_tokens = n;
}

KvCache KvCache::fork() const {
  KvCache copy(std::make_unique<State>(*state_));
  copy.rollback();
  return copy;
}

CacheStats KvCache::stats() const {
  const State& s = *state_;
  CacheStats out;
  out.spec = s.spec.str();
  out.tokens_seen = s.n_tokens;
  out.meta = static_cast<int64_t>(s.layers.capacity() * sizeof(LayerCache));
  for (size_t i = 0; i < s.layers.size(); ++i) {
    const LayerCache& layer = s.layers[i];
    out.meta += static_cast<int64_t>(layer.sides.capacity() * sizeof(SideCache) +
                                     layer.views.capacity() * sizeof(HeadView));
    for (const SideCache& side : layer.sides) side.count(&out);
    const LayerShape& shape = s.shapes[i];
    out.f16_bytes +=
        int64_t{2} * s.n_tokens * shape.n_kv_heads * (int64_t{shape.key_dim} + shape.value_dim);
    out.tokens_kept = std::max<int64_t>(out.tokens_kept, layer.rows());
  }
  out.bytes = out.codes + out.scales + out.bases + out.tail + out.meta;
  out.peak_bytes = s.counter->peak();
  if (out.f16_bytes > 0) {
    out.bits_per_value = 16.0 * static_cast<double>(out.bytes) / static_cast<double>(out.f16_bytes);
  }
  const bool floats = codec(s.spec.k.codec.id).is_float() && codec(s.spec.v.codec.id).is_float();
  out.path = floats ? "fused" : "rebuilt";
  return out;
}

int KvCache::rows(int layer) const { return state_->layers.at(static_cast<size_t>(layer)).rows(); }

void KvCache::read_keys(int layer, int head, Mat out) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  KVE_ASSERT(head >= 0 && head < cache.n_heads());
  KVE_ASSERT(out.rows == cache.rows() && out.cols == cache.keys(head).width());
  cache.keys(head).decode(out);
}

void KvCache::read_values(int layer, int head, Mat out) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  KVE_ASSERT(head >= 0 && head < cache.n_heads());
  KVE_ASSERT(out.rows == cache.rows() && out.cols == cache.values(head).width());
  cache.values(head).decode(out);
}

}  // namespace kve
