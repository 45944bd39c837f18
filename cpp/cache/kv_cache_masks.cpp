// H2O as a benchmark ran it: each query head masks rows of its own, by what its decode queries gave
// them, and nothing is freed. To kernels a query head is then a kv head with rows that it shares
// with others, as if keys and values were repeated, which is what the original does.
#include "base/error.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_state.h"

namespace kve {

std::span<const HeadView> KvCache::State::views_of_queries(LayerCache* layer, int n_heads) {
  layer->masks.check_heads(n_heads);
  layer->masks.reserve(layer->rows(0));
  shown.views.resize(static_cast<size_t>(n_heads));
  layer->masks.show(layer->views, shown.views);
  return shown.views;
}

// [n_heads][rows]: what the newest query of each head gave the rows; empty if there was no query.
std::vector<std::vector<float>> KvCache::State::weigh_queries(Backend& backend, LayerCache* layer,
                                                              int n) {
  const Voters& voters = *layer->voters;
  const int there = voters.committed() + voters.pending(n);
  if (there == 0) return {};
  AttendParams params = voters.params();
  params.n_kv_heads = params.n_heads;
  std::vector<std::vector<float>> mass(static_cast<size_t>(params.n_heads));
  std::vector<float*> pointers;
  for (std::vector<float>& rows : mass) {
    rows.resize(static_cast<size_t>(layer->rows(0)));
    pointers.push_back(rows.data());
  }
  const MassTask task{voters.queries(there - 1, 1), views_of_queries(layer, params.n_heads),
                      n_tokens + n - 1, voters.sums_of(there - 1), pointers};
  backend.attention_mass(params, MassOf::sum, {&task, 1});
  return mass;
}

void KvCache::State::mask_rows(LayerCache* layer, std::span<const std::vector<float>> weights,
                               int left) const {
  if (weights.empty()) return;
  const double share = spec.selector.share / 2;
  const int heavy = static_cast<int>(share * (prompt_tokens + 1));
  layer->masks.step(weights, layer->rows(0) - left, heavy, heavy);
}

void KvCache::State::attend_masked(Backend& backend, AttendParams params, LayerCache* layer,
                                   const AttendTask& queries) {
  AttendTask task = queries;
  params.n_kv_heads = params.n_heads;
  with_room(backend, [&] { task.heads = views_of_queries(layer, params.n_heads); }, [] {});
  backend.attend(params, {&task, 1});
}

std::vector<int32_t> KvCache::seen_positions(int layer, int query_head) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  KVE_ASSERT(cache.masks.empty() || query_head < cache.masks.n_heads());
  std::vector<int32_t> out;
  for (int row = 0; row < cache.rows(0); ++row) {
    if (cache.masks.sees(query_head, row)) out.push_back(row);
  }
  return out;
}

}  // namespace kve
