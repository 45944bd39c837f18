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

inline AttendParams select_params(int n_kv_heads = 2) {
  return {.n_heads = 2 * n_kv_heads,
          .n_kv_heads = n_kv_heads,
          .key_dim = kSelectDim,
          .value_dim = kSelectDim,
          .scale = 1.5f / std::sqrt(float{kSelectDim})};
}

// Appends the next n tokens to every layer and attends to them. Returns what the last layer gave.
inline std::vector<float> attend_tokens(const TokenRows& tokens, KvCache* cache, Backend& backend,
                                        int n) {
  const AttendParams params = select_params(cache->layers()[0].n_kv_heads);
  const int64_t width = int64_t{params.n_heads} * kSelectDim;
  const int first = cache->n_tokens();
  std::vector<float> out(static_cast<size_t>(n * width));
  for (size_t i = 0; i < cache->layers().size(); ++i) {
    const int layer = static_cast<int>(i);
    cache->append(backend, layer, tokens.k(i, first, n), tokens.v(i, first, n));
    if (cache->wants_queries(layer)) cache->observe_queries(layer, tokens.q(i, first, n));
    if (cache->has_blocks(layer)) {
      cache->attend(backend, params, layer, tokens.q(i, first, n), Mat(out.data(), n, width));
      continue;
    }
    std::vector<AttendTask> tasks;
    cache->plan_attention(backend, params, layer, tokens.q(i, first, n), Mat(out.data(), n, width),
                          &tasks);
    backend.attend(params, tasks);
    cache->observe_attention(backend, layer, params, tasks[0]);
  }
  return out;
}

inline std::vector<float> read_tokens(const TokenRows& tokens, KvCache* cache, Backend& backend,
                                      int n, bool prompt_goes_on = false) {
  std::vector<float> out = attend_tokens(tokens, cache, backend, n);
  cache->commit(backend, n, prompt_goes_on);
  return out;
}

inline std::vector<int32_t> kept_positions(const KvCache& cache, int layer, int head) {
  std::vector<int32_t> out(static_cast<size_t>(cache.rows(layer, head)));
  cache.read_positions(layer, head, out);
  return out;
}

}  // namespace kve
