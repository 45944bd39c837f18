// Going back: to before the tokens that were only appended, or to an earlier length.
#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_state.h"

namespace kve {
namespace {

// The first position that a token at position n attends to.
int64_t oldest_visible(int window, int n) { return std::max<int64_t>(0, int64_t{n} - window + 1); }

}  // namespace

void KvCache::rollback() {
  state_->release_jobs();
  state_->cancel_selection();
  for (LayerCache& layer : state_->layers) {
    layer.each_side([](SideCache& side, int) { side.cancel_seal(); });
    layer.queries.rollback();
    if (layer.blocks) layer.blocks->rollback();
    if (layer.appended == 0) continue;
    const int committed = layer.rows(0) - layer.appended;
    for (KeptHead& head : layer.kept) head.truncate(head.rows() - layer.appended);
    layer.each_side([&](SideCache& side, int head) {
      side.truncate_appended(layer.kept.empty() ? committed : layer.rows(head));
      side.release_spare();
    });
    for (HeadBounds& bounds : layer.bounds) bounds.truncate(committed);
    layer.appended = 0;
    layer.refresh_views();
  }
}

bool KvCache::can_truncate(int n) const {
  const State& s = *state_;
  if (n < 0 || n > s.n_tokens) return false;
  if (n == 0 || n == s.n_tokens) return true;
  if (n < s.dropped_at) return false;
  for (size_t i = 0; i < s.layers.size(); ++i) {
    if (s.layers[i].blocks && s.layers[i].blocks->end() > 0) return false;
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
  if (!can_truncate(n) && n < s.dropped_at) {
    throw CapacityError(message("cache: cannot go back from ", s.n_tokens, " to ", n,
                                " tokens: rows were dropped when ", s.dropped_at,
                                " had been read"));
  }
  const auto has_left = [](const LayerCache& layer) {
    return layer.blocks && layer.blocks->end() > 0;
  };
  if (const auto at = std::ranges::find_if(s.layers, has_left);
      !can_truncate(n) && at != s.layers.end()) {
    throw CapacityError(message("cache: cannot go back from ", s.n_tokens, " to ", n,
                                " tokens: the first ", at->blocks->end(),
                                " have left the local window of infllm"));
  }
  if (!can_truncate(n)) {
    throw CapacityError(message("cache: cannot go back from ", s.n_tokens, " to ", n,
                                " tokens: layers with a sliding window no longer hold the rows "
                                "before it"));
  }
  std::vector<HalfMemory> returning;
  for (const LayerCache& layer : s.layers) {
    layer.each_side([&](const SideCache& side, int head) {
      const int rows = n == 0 ? 0 : layer.rows_before(n - s.shift, head);
      returning.push_back(side.returning(rows, layer.positions(head)));
    });
  }
  rollback();
  size_t at = 0;
  for (LayerCache& layer : s.layers) {
    if (n == 0) {
      layer.first_pos = 0;
      layer.queries.clear();
      if (layer.blocks) layer.blocks->clear();
    }
    layer.queries.forget(s.n_tokens - n);
    if (layer.blocks && layer.blocks->end() == 0) layer.blocks->forget(n);
    layer.each_side([&](SideCache& side, int head) {
      side.truncate(n == 0 ? 0 : layer.rows_before(n - s.shift, head), std::move(returning[at++]));
    });
    for (HeadBounds& bounds : layer.bounds) bounds.truncate(n);
    s.forget_selection(&layer, n);
    layer.refresh_views();
  }
  s.forget_selection(n);
  s.n_tokens = n;
  s.counter->source().wait();  // another thread may use the cache next
}

void KvCache::expect(int n) noexcept {
  for (LayerCache& layer : state_->layers) {
    layer.each_side([n](SideCache& side, int) { side.expect(n); });
    layer.refresh_views();
  }
}

}  // namespace kve
