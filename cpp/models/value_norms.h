// How much values add to the residual stream: the norm of what a layer's output weights make of
// them, for selectors that weigh tokens by it (KVzip+).
#pragma once

#include <vector>

#include "base/thread_pool.h"
#include "cache/kv_cache.h"
#include "models/spec.h"
#include "models/weights.h"

namespace kve {

// |W v| of a head's columns W [d_model, value_dim] of the weights is sqrt(v (W^T W) v): one product
// of that size for each row. The products W^T W of a layer's heads are computed when one of them is
// first asked for, and kept until another layer is. Biases add the same to all tokens, and nothing
// here.
class HeadNorms {
 public:
  // The weights are read as they are in the file, in memory of the host; all live as long as this.
  HeadNorms(const ModelSpec& spec, const ModelWeights& weights, ThreadPool& pool);

  // As ValueNorms.
  void operator()(int layer, int query_head, ConstMat values, std::span<float> norms);

 private:
  void square(int layer);

  const ModelSpec& spec_;
  const ModelWeights& weights_;
  ThreadPool& pool_;
  int layer_ = -1;
  std::vector<float> squares_;  // [n_heads][value_dim][value_dim]
};

}  // namespace kve
