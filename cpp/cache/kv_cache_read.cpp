// What a cache holds, for whoever asks.
#include <algorithm>

#include "base/error.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_state.h"

namespace kve {

CacheStats KvCache::stats() const {
  const State& s = *state_;
  CacheStats out;
  out.spec = s.spec.str();
  out.tokens_seen = s.n_tokens;
  out.meta = static_cast<int64_t>(s.layers.capacity() * sizeof(LayerCache) +
                                  s.seals.capacity() * sizeof(LayerSeal) +
                                  s.jobs.capacity() * sizeof(SealJob));
  out.meta += static_cast<int64_t>(s.shown.bytes());
  for (size_t i = 0; i < s.layers.size(); ++i) {
    const LayerCache& layer = s.layers[i];
    out.meta +=
        static_cast<int64_t>((layer.keys.capacity() + layer.values.capacity()) * sizeof(SideCache) +
                             layer.views.capacity() * sizeof(HeadView) + layer.queries.bytes() +
                             layer.kept.capacity() * sizeof(KeptHead) + layer.masks.bytes());
    for (const KeptHead& head : layer.kept) {
      out.meta += static_cast<int64_t>(head.bytes());
      out.tokens_kept = std::max<int64_t>(out.tokens_kept, head.alive());
    }
    out.meta += static_cast<int64_t>(layer.bounds.capacity() * sizeof(HeadBounds));
    for (const HeadBounds& bounds : layer.bounds) out.meta += static_cast<int64_t>(bounds.bytes());
    if (layer.blocks) {
      layer.blocks->count(&out);
      out.tokens_kept = s.n_tokens;
    }
    if (layer.voters) out.meta += static_cast<int64_t>(layer.voters->bytes());
    layer.each_side([&](const SideCache& side, int) { side.count(&out); });
    const LayerShape& shape = s.shapes[i];
    out.f16_bytes +=
        int64_t{2} * s.n_tokens * shape.n_kv_heads * (int64_t{shape.key_dim} + shape.value_dim);
    if (layer.kept.empty()) out.tokens_kept = std::max<int64_t>(out.tokens_kept, layer.rows(0));
  }
  for (const State::SharedBasis& shared : s.shared) {
    out.bases += static_cast<int64_t>(shared.basis->bytes());
  }
  for (const std::shared_ptr<const Basis>& basis : s.latent) {
    out.bases += static_cast<int64_t>(basis->bytes());
  }
  out.bytes = out.codes + out.scales + out.bases + out.tail + out.meta;
  out.peak_bytes = s.counter->peak();
  if (out.f16_bytes > 0) {
    out.bits_per_value = 16.0 * static_cast<double>(out.bytes) / static_cast<double>(out.f16_bytes);
  }
  return out;
}

ReadPath KvCache::read_path(const Backend& backend, Precision precision) const {
  ReadPath worst = ReadPath::fused;
  for (const LayerCache& layer : state_->layers) {
    layer.each_side([&](const SideCache& side, int) {
      worst = std::max(worst, backend.read_path(side.view(0), precision));
    });
    if (layer.blocks) worst = std::max(worst, layer.blocks->read_path(backend, precision));
  }
  return worst;
}

int KvCache::rows(int layer) const { return rows(layer, 0); }

int KvCache::rows(int layer, int head) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  KVE_ASSERT(head >= 0 && head < cache.n_heads());
  return cache.kept.empty() ? cache.rows(head) : cache.kept[static_cast<size_t>(head)].alive();
}

void KvCache::read_positions(int layer, int head, std::span<int32_t> out) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  KVE_ASSERT(std::ssize(out) == rows(layer, head));
  size_t at = 0;
  for (int row = 0; row < cache.rows(head); ++row) {
    if (!cache.kept.empty() && cache.kept[static_cast<size_t>(head)].is_dead(row)) continue;
    out[at++] = static_cast<int32_t>(cache.positions(head).of(row));
  }
}

namespace {

void read_side(const LayerCache& cache, const Sides& sides, int head, Mat out) {
  const int shared = sides[0].setup().n_heads;
  const int n = cache.rows(head);
  KVE_ASSERT(out.cols == sides[0].setup().head_dim);
  const SideCache& side = sides[static_cast<size_t>(head / shared)];
  if (out.rows == n) return side.decode(head % shared, cache.positions(head), out);
  std::vector<float> all(static_cast<size_t>(n) * static_cast<size_t>(out.cols));
  side.decode(head % shared, cache.positions(head), {all.data(), n, out.cols});
  float* to = out.data;
  for (int row = 0; row < n; ++row) {
    if (cache.kept[static_cast<size_t>(head)].is_dead(row)) continue;
    std::copy_n(all.data() + int64_t{row} * out.cols, out.cols, to);
    to += out.stride;
  }
}

}  // namespace

void KvCache::read_keys(int layer, int head, Mat out) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  KVE_ASSERT(out.rows == rows(layer, head));
  read_side(cache, cache.keys, head, out);
}

void KvCache::read_values(int layer, int head, Mat out) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  KVE_ASSERT(out.rows == rows(layer, head));
  read_side(cache, cache.values, head, out);
}

}  // namespace kve
