#include <span>

#include "models/decoder.h"

namespace kve {
namespace {

// The leading [n, width] of a matrix that is laid out for the widest layer.
Mat narrow(const Mat& mat, int64_t width) { return {mat.data, mat.rows, width}; }

const float* data_or_null(const Vector& vector) { return vector.empty() ? nullptr : vector.data(); }

// [n, heads * head_dim] seen as one row per head.
Mat head_rows(const Mat& mat, int64_t head_dim) {
  return {mat.data, mat.rows * mat.cols / head_dim, head_dim};
}

// Rows [first_row, first_row + rows), columns [first_col, first_col + cols) of a matrix of floats.
Weight part_of(const Weight& weight, int64_t first_row, int64_t rows, int64_t first_col,
               int64_t cols) {
  Weight part = weight;
  part.rows = rows;
  part.cols = cols;
  part.data +=
      static_cast<size_t>(first_row) * weight.row_bytes + row_bytes(weight.type, first_col);
  part.repacked = nullptr;
  return part;
}

// KV-head compression after the rotary embedding (arXiv 2406.07056): with the orthonormal rows of
// psi_i = [psi_i1 .. psi_it] for group i of t heads of keys, the cache holds psi_i (k_1 .. k_t),
// and a query of head s of the group becomes psi_is q, so that their product is that of q and the
// part of k_s that psi_i keeps.
void merge_keys(const LayerContext& context, ConstMat q, ConstMat k, Mat merged_q, Mat merged_k) {
  const AttentionSpec& spec = context.layer_spec.attention;
  const Weight& psi = context.weights.attention.psi;
  const int64_t d = spec.head_dim;
  const int64_t group = spec.key_group();
  const int64_t queries = spec.n_heads / spec.n_key_heads;  // per head of keys
  for (int64_t i = 0; i < spec.n_kv_heads; ++i) {
    const Weight whole = part_of(psi, i * d, d, 0, group * d);
    const Product keys{&whole, merged_k.columns(i * d, d), nullptr};
    context.backend.matmul(k.columns(i * group * d, group * d), {&keys, 1}, context.precision.qkv);
    for (int64_t h = 0; h < group * queries; ++h) {
      const int64_t head = i * group * queries + h;
      const Weight slice = part_of(psi, i * d, d, h / queries * d, d);
      const Product query{&slice, merged_q.columns(head * d, d), nullptr};
      context.backend.matmul(q.columns(head * d, d), {&query, 1}, context.precision.qkv);
    }
  }
}

}  // namespace

void attention(const LayerContext& context, const Activations& a, std::vector<AttendTask>& tasks) {
  const AttentionSpec& spec = context.layer_spec.attention;
  const AttentionWeights& w = context.weights.attention;
  Backend& backend = context.backend;
  Mat q = narrow(a.q, int64_t{spec.n_heads} * spec.head_dim);
  Mat k = narrow(a.k, int64_t{spec.n_key_heads} * spec.head_dim);
  const Mat v = narrow(a.v, int64_t{spec.n_kv_heads} * spec.value_dim);
  const Mat mixed = narrow(a.mixed, int64_t{spec.n_heads} * spec.value_dim);

  const Product qkv[] = {{&w.q, q, data_or_null(w.q_bias)},
                         {&w.k, k, data_or_null(w.k_bias)},
                         {&w.v, v, data_or_null(w.v_bias)}};
  backend.matmul(a.normed, qkv, context.precision.qkv);
  if (spec.clamp > 0) {
    for (const Mat& mat : {q, k, v}) backend.clamp(spec.clamp, mat);
  }
  if (spec.qk_norm) {
    const float eps = context.spec.norm_eps;
    backend.rms_norm(head_rows(q, spec.head_dim), w.q_norm.data(), eps,
                     head_rows(q, spec.head_dim));
    backend.rms_norm(head_rows(k, spec.head_dim), w.k_norm.data(), eps,
                     head_rows(k, spec.head_dim));
  }
  if (const RopeTable* rope = context.rope) {
    backend.rope(q, spec.head_dim, rope->layout(), rope->cos(), rope->sin());
    backend.rope(k, spec.head_dim, rope->layout(), rope->cos(), rope->sin());
  }

  if (spec.merges_keys) {
    const Mat merged_q = narrow(a.merged_q, q.cols);
    const Mat merged_k = narrow(a.merged_k, int64_t{spec.n_kv_heads} * spec.head_dim);
    merge_keys(context, q, k, merged_q, merged_k);
    q = merged_q;
    k = merged_k;
  }

  const AttendParams params{spec.n_heads,
                            spec.n_kv_heads,
                            spec.head_dim,
                            spec.value_dim,
                            spec.scale,
                            spec.softcap,
                            spec.window,
                            spec.alibi.empty() ? nullptr : spec.alibi.data(),
                            context.precision.attention};
  tasks.clear();
  int64_t row = 0;
  for (const Batch::Slice& slice : context.batch.slices) {
    const auto n = static_cast<int64_t>(slice.tokens.size());
    slice.cache->append(backend, context.layer, k.block(row, n), v.block(row, n));
    if (slice.cache->wants_queries(context.layer)) {
      backend.fetch(q.block(row, n));
      slice.cache->observe_queries(context.layer, q.block(row, n));
    }
    if (slice.cache->wants_inputs(context.layer)) {
      backend.fetch(a.normed.block(row, n));
      slice.cache->observe_inputs(context.layer, a.normed.block(row, n));
    }
    if (slice.cache->attends_apart(context.layer)) {
      slice.cache->attend(backend, params, context.layer, q.block(row, n), mixed.block(row, n));
    } else {
      slice.cache->plan_attention(backend, params, context.layer, q.block(row, n),
                                  mixed.block(row, n), &tasks);
    }
    row += n;
  }
  if (!tasks.empty()) backend.attend(params, tasks);
  // A slice has one task, or one for each token; none where it attended on its own.
  size_t task = 0;
  for (const Batch::Slice& slice : context.batch.slices) {
    if (slice.cache->attends_apart(context.layer)) continue;
    const bool one_each = tasks[task].q.rows < std::ssize(slice.tokens);
    slice.cache->observe_attention(backend, context.layer, params, tasks[task]);
    task += one_each ? slice.tokens.size() : 1;
  }
}

void attention_output(const LayerContext& context, const Activations& a) {
  const AttentionSpec& spec = context.layer_spec.attention;
  const AttentionWeights& w = context.weights.attention;
  const Mat mixed = narrow(a.mixed, int64_t{spec.n_heads} * spec.value_dim);
  const Product output{&w.o, a.block, data_or_null(w.o_bias)};
  context.backend.matmul(mixed, {&output, 1}, context.precision.attention_output);
}

}  // namespace kve
