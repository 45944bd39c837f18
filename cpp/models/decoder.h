// The forward pass.
#pragma once

#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "kernels/backend.h"
#include "models/batch.h"
#include "models/rope.h"
#include "models/spec.h"
#include "models/weights.h"

namespace kve {

// Which products need which precision. int8 activations cost the most where an error reaches every
// later attention score or the logits directly. Mean KLD to f32 activations, SmolLM2-135M Q4_1, the
// second halves of the first two windows of 2,048 tokens of WikiText-2, prompts in passes of 512:
// 0.0022 with one plane everywhere but for the logits, 0.0015 with two planes for q, k and v (a
// sixth of the products), 0.0014 with `mixed` instead.
struct PrecisionPlan {
  Precision qkv = Precision::mixed;
  Precision attention = Precision::fast;
  Precision attention_output = Precision::fast;
  Precision ffn_in = Precision::fast;
  Precision ffn_out = Precision::fast;
  Precision logits = Precision::mixed;

  static PrecisionPlan exact();
};

// Memory of one forward pass: one matrix for each role, reused by all layers.
struct Activations {
  Mat x;       // [n, d_model] residual stream
  Mat normed;  // [n, d_model]
  Mat block;   // [n, d_model] what a block adds
  Mat q;       // [n, n_heads * head_dim]
  Mat k;       // [n, n_key_heads * head_dim]
  Mat v;       // [n, n_kv_heads * value_dim]
  Mat mixed;   // [n, n_heads * value_dim]
  Mat gate;    // [n, d_ff]
  Mat up;      // [n, d_ff]
  // Of layers that merge keys.
  Mat merged_q;  // [n, n_heads * head_dim]
  Mat merged_k;  // [n, n_kv_heads * head_dim]

  // The leading rows of all.
  Activations first_rows(int64_t n_rows) const;
};

// Everything a layer's blocks need to run.
struct LayerContext {
  const ModelSpec& spec;
  int layer = 0;
  const LayerSpec& layer_spec;
  const LayerWeights& weights;
  Backend& backend;
  const RopeTable* rope;  // null: none
  const PrecisionPlan& precision;
  const Batch& batch;

  bool is_last() const { return layer + 1 == static_cast<int>(spec.layers.size()); }
};

// mixers/attention.cpp: mixed = attention(normed) but for the output product, appending keys and
// values to the caches.
void attention(const LayerContext& context, const Activations& a, std::vector<AttendTask>& tasks);
// The output product: block = mixed W^T.
void attention_output(const LayerContext& context, const Activations& a);
// ffn.cpp: block = ffn(normed).
void ffn(const LayerContext& context, const Activations& a);

// Keeps scratch memory: one forward pass at a time.
class Decoder {
 public:
  Decoder(const ModelSpec& spec, const ModelWeights& weights, Backend& backend);

  // Computes all slices and commits their tokens to the caches. If it throws, every cache is as it
  // was; CapacityError where positions are learned and end before the batch does. Tokens are valid
  // ids; slices are not empty, and no two of them share a cache.
  void forward(const Batch& batch);

 private:
  void check_positions(const Batch& batch) const;
  void run(const Batch& batch);
  void embed(const Batch& batch);
  void norm(ConstMat x, const NormWeights& weights, Mat out);
  // x += y, then the norm of x.
  void add_and_norm(Mat x, ConstMat y, const NormWeights& weights, Mat out);
  void keep_rows_with_logits(const Batch& batch, const LayerSpec& layer);
  ConstMat write_logits(const Batch& batch, const PrecisionPlan& precision);
  void read_logits(std::span<const Batch::Slice> slices, ConstMat shared);
  void end_pass();
  void multiply_logits(ConstMat normed, Mat logits, const PrecisionPlan& precision);
  Activations plan_memory(int64_t n);

  const ModelSpec& spec_;
  const ModelWeights& weights_;
  Backend& backend_;
  std::vector<RopeTable> ropes_;
  // Scratch.
  Scratch memory_;
  Scratch logits_;  // of several slices, [rows, vocab_size]
  Activations act_;
  std::vector<int32_t> positions_;
  std::vector<AttendTask> attend_tasks_;
};

}  // namespace kve
