// What the tests of caches with selectors share: passes that attend, as the decoder's do.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "cache/cache_testing.h"
#include "cache/reference_attention.h"

namespace kve {

inline constexpr int kSelectDim = 32;

// Two kv heads with rotary embeddings, in `n` layers.
inline std::vector<LayerShape> select_shapes(int n_layers, int n_kv_heads = 2) {
  const auto rotation = std::make_shared<Rotation>();
  for (int i = 0; i < kSelectDim / 2; ++i) rotation->frequencies.push_back(std::pow(0.6, i));
  return std::vector<LayerShape>(static_cast<size_t>(n_layers),
                                 LayerShape{n_kv_heads, kSelectDim, kSelectDim, 0, rotation});
}

inline AttendParams select_params(int n_kv_heads = 2, int group = 2) {
  return {.n_heads = group * n_kv_heads,
          .n_kv_heads = n_kv_heads,
          .key_dim = kSelectDim,
          .value_dim = kSelectDim,
          .scale = 1.5f / std::sqrt(float{kSelectDim})};
}

// Appends the next n tokens to every layer and attends to them, with `group` query heads (of two
// that there are) to a kv head. Returns what the last layer gave.
inline std::vector<float> attend_tokens(const TokenRows& tokens, KvCache* cache, Backend& backend,
                                        int n, int group = 2) {
  const AttendParams params = select_params(cache->layers()[0].n_kv_heads, group);
  const int64_t width = int64_t{params.n_heads} * kSelectDim;
  const int first = cache->n_tokens();
  std::vector<float> out(static_cast<size_t>(n * width));
  for (size_t i = 0; i < cache->layers().size(); ++i) {
    const int layer = static_cast<int>(i);
    cache->append(backend, layer, tokens.k(i, first, n), tokens.v(i, first, n));
    const ConstMat q = tokens.q(i, first, n).columns(0, width);
    if (cache->wants_queries(layer)) cache->observe_queries(layer, q);
    if (cache->attends_apart(layer)) {
      cache->attend(backend, params, layer, q, Mat(out.data(), n, width));
      continue;
    }
    std::vector<AttendTask> tasks;
    cache->plan_attention(backend, params, layer, q, Mat(out.data(), n, width), &tasks);
    backend.attend(params, tasks);
    cache->observe_attention(backend, layer, params, tasks[0]);
  }
  return out;
}

inline std::vector<float> read_tokens(const TokenRows& tokens, KvCache* cache, Backend& backend,
                                      int n, bool prompt_goes_on = false, int group = 2) {
  std::vector<float> out = attend_tokens(tokens, cache, backend, n, group);
  cache->commit(backend, n, prompt_goes_on);
  return out;
}

// A kv head for each query head, where each sees rows of its own (h2o_bench).
class ViewsOfQueries {
 public:
  ViewsOfQueries(const KvCache& cache, int layer, int n_heads) {
    const std::span<const HeadView> views = cache.view(layer);
    const size_t group = static_cast<size_t>(n_heads) / views.size();
    for (size_t h = 0; h < static_cast<size_t>(n_heads); ++h) {
      HeadView& view = heads_.emplace_back(views[h / group]);
      std::vector<uint64_t>& dead =
          dead_.emplace_back((static_cast<size_t>(view.n_rows) + 63) / 64, ~uint64_t{0});
      for (const int32_t row : cache.seen_positions(layer, static_cast<int>(h))) {
        dead[static_cast<size_t>(row) / 64] &= ~(uint64_t{1} << (row % 64));
      }
      view.dead = dead.data();
    }
  }
  std::span<const HeadView> heads() const { return heads_; }

 private:
  std::vector<HeadView> heads_;
  std::vector<std::vector<uint64_t>> dead_;
};

inline std::vector<int32_t> kept_positions(const KvCache& cache, int layer, int head) {
  std::vector<int32_t> out(static_cast<size_t>(cache.rows(layer, head)));
  cache.read_positions(layer, head, out);
  return out;
}

}  // namespace kve
