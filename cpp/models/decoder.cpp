#include "models/decoder.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/few_rows.h"

namespace kve {

PrecisionPlan PrecisionPlan::exact() {
  return {Precision::exact, Precision::exact, Precision::exact,
          Precision::exact, Precision::exact, Precision::exact};
}

Decoder::Decoder(const ModelSpec& spec, const ModelWeights& weights, Backend& backend)
    : spec_(spec),
      weights_(weights),
      backend_(backend),
      memory_(backend.memory()),
      logits_(backend.memory()) {
  for (const RopeSpec& rope : spec.ropes) ropes_.emplace_back(rope, backend.memory());
}

void Decoder::forward(const Batch& batch) {
  try {
    run(batch);
  } catch (...) {
    backend_.cancel_pass();
    for (const Batch::Slice& slice : batch.slices) slice.cache->rollback();
    throw;
  }
}

void Decoder::end_pass() {
  const int32_t layer = backend_.end_pass();
  if (layer < 0) return;
  throw Error(message("layer ", layer, ": expected finite keys and values, found NaN or infinity"));
}

void Decoder::check_positions(const Batch& batch) const {
  if (!spec_.learned_positions) return;
  for (const Batch::Slice& slice : batch.slices) {
    const int64_t end = slice.first_position() + std::ssize(slice.tokens);
    if (end <= spec_.n_ctx) continue;
    throw CapacityError(message("this model learned positions 0 to ", spec_.n_ctx - 1,
                                ": expected no later ones, found ", end - 1));
  }
}

void Decoder::norm(ConstMat x, const NormWeights& weights, Mat out) {
  if (spec_.norm_kind == NormKind::layer) {
    const float* bias = weights.bias.empty() ? nullptr : weights.bias.data();
    backend_.layer_norm(x, weights.weight.data(), bias, spec_.norm_eps, out);
  } else {
    backend_.rms_norm(x, weights.weight.data(), spec_.norm_eps, out);
  }
}

void Decoder::add_and_norm(Mat x, ConstMat y, const NormWeights& weights, Mat out) {
  if (spec_.norm_kind == NormKind::layer) {
    backend_.add(x, y);
    norm(x, weights, out);
  } else {
    backend_.add_rms_norm(x, y, weights.weight.data(), spec_.norm_eps, out);
  }
}

// Rows of all slices lie one after the other; matrix products see them as one.
void Decoder::embed(const Batch& batch) {
  positions_.clear();
  int64_t row = 0;
  for (const Batch::Slice& slice : batch.slices) {
    const auto n = static_cast<int64_t>(slice.tokens.size());
    backend_.embed(weights_.embedding, slice.tokens, spec_.embed_scale, act_.x.block(row, n));
    for (int64_t i = 0; i < n; ++i) {
      positions_.push_back(slice.first_position() + static_cast<int32_t>(i));
    }
    row += n;
  }
  if (spec_.learned_positions) {
    backend_.embed(weights_.positions, positions_, 1, act_.block);
    backend_.add(act_.x, act_.block);
  }
  if (spec_.embed_norm) norm(act_.x, weights_.embedding_norm, act_.x);
  for (RopeTable& rope : ropes_) {
    rope.set_positions(positions_);
    backend_.send(rope.cos());
    backend_.send(rope.sin());
  }
}

void Decoder::run(const Batch& batch) {
  check_positions(batch);
  const PrecisionPlan precision = batch.exact ? PrecisionPlan::exact() : PrecisionPlan{};
  act_ = plan_memory(batch.n_tokens());
  backend_.begin_pass();
  embed(batch);

  norm(act_.x, weights_.layers[0].attention_norm, act_.normed);
  for (size_t i = 0; i < spec_.layers.size(); ++i) {
    const LayerSpec& layer = spec_.layers[i];
    const LayerWeights& w = weights_.layers[i];
    const bool sandwich = layer.norm == NormPlacement::sandwich;
    const int rope = layer.attention.rope;
    const RopeTable* table = rope == kNoRope ? nullptr : &ropes_[static_cast<size_t>(rope)];
    const LayerContext context{spec_, static_cast<int>(i), layer, w, backend_,
                               table, precision,           batch};

    attention(context, act_, attend_tasks_);
    if (context.is_last()) keep_rows_with_logits(batch, layer);
    if (act_.x.rows == 0) break;
    attention_output(context, act_);
    if (sandwich) norm(act_.block, w.attention_post_norm, act_.block);

    add_and_norm(act_.x, act_.block, w.ffn_norm, act_.normed);
    ffn(context, act_);
    if (sandwich) norm(act_.block, w.ffn_post_norm, act_.block);
    if (context.is_last()) {
      backend_.add(act_.x, act_.block);
    } else {
      add_and_norm(act_.x, act_.block, weights_.layers[i + 1].attention_norm, act_.normed);
    }
  }

  const ConstMat unread = write_logits(batch, precision);
  for (const Batch::Slice& slice : batch.slices) {
    if (!slice.commit) continue;
    slice.cache->prepare_commit(backend_, static_cast<int>(slice.tokens.size()),
                                slice.prompt_goes_on);
  }
  end_pass();
  if (unread.rows > 0) read_logits(batch.slices, unread);
  for (const Batch::Slice& slice : batch.slices) {
    if (slice.commit) slice.cache->finish_commit(static_cast<int>(slice.tokens.size()));
  }
  // Another thread's pass may be next.
  backend_.memory().wait();
}

void Decoder::read_logits(std::span<const Batch::Slice> slices, ConstMat shared) {
  backend_.fetch(shared);
  int64_t row = 0;
  for (const Batch::Slice& slice : slices) {
    for (int64_t r = 0; r < slice.logits.rows; ++r) {
      std::copy_n(shared.row(row++), shared.cols, slice.logits.row(r));
    }
  }
}

// After the last layer's attention a token matters to its own logits only, which of a prompt are
// those of its last token: rows of other tokens are left out. The rows of a slice move before those
// of later ones.
void Decoder::keep_rows_with_logits(const Batch& batch, const LayerSpec& layer) {
  const AttentionSpec& a = layer.attention;
  const Mat mixed(act_.mixed.data, act_.mixed.rows, int64_t{a.n_heads} * a.value_dim);
  MemorySource& memory = backend_.memory();
  int64_t end = 0;
  int64_t kept = 0;
  for (const Batch::Slice& slice : batch.slices) {
    const int64_t n = slice.logits.rows;
    end += static_cast<int64_t>(slice.tokens.size());
    if (n > 0 && kept != end - n) {
      for (const Mat& mat : {act_.x, mixed}) {
        const auto bytes = static_cast<size_t>(n * mat.cols) * sizeof(float);
        memory.copy(mat.row(kept), mat.row(end - n), bytes);
      }
    }
    kept += n;
  }
  act_ = act_.first_rows(kept);
}

// Slices that want a few rows share one product, so that the output matrix, the largest of all, is
// read once for them and not once for each. Where all of them do, or the results are on a device,
// which is not to wait in the midst of a pass, they are returned for read_logits().
ConstMat Decoder::write_logits(const Batch& batch, const PrecisionPlan& precision) {
  constexpr int64_t kSharedRows = 32;  // bounds the scratch memory
  const bool on_device = &backend_.memory() != &host_memory();
  const std::span<const Batch::Slice> slices = batch.slices;
  int64_t done = 0;
  for (size_t first = 0, last = 0; first < slices.size(); first = last) {
    int64_t rows = 0;
    do {
      rows += slices[last++].logits.rows;
    } while (last < slices.size() && rows <= kSharedRows - kFewRows &&
             std::max(slices[first].logits.rows, slices[last].logits.rows) <= kFewRows);
    if (rows == 0) continue;
    const Mat normed = act_.normed.block(0, rows);
    norm(act_.x.block(done, rows), weights_.output_norm, normed);
    done += rows;
    if (last == first + 1 && (!on_device || rows > kSharedRows)) {
      multiply_logits(normed, slices[first].logits, precision);
      continue;
    }
    const int64_t vocab_size = weights_.output.rows;
    const Mat shared(logits_.get<float>(static_cast<size_t>(rows * vocab_size)), rows, vocab_size);
    multiply_logits(normed, shared, precision);
    if (first == 0 && last == slices.size()) return shared;
    read_logits(slices.subspan(first, last - first), shared);
  }
  return {};
}

void Decoder::multiply_logits(ConstMat normed, Mat logits, const PrecisionPlan& precision) {
  if (logits.rows == 0) return;
  const Product product{&weights_.output, logits, nullptr};
  backend_.matmul(normed, {&product, 1}, precision.logits);
  if (spec_.logit_softcap > 0) backend_.softcap(spec_.logit_softcap, logits);
}

Activations Activations::first_rows(int64_t n_rows) const {
  Activations a = *this;
  for (Mat* mat : {&a.x, &a.normed, &a.block, &a.q, &a.k, &a.v, &a.mixed, &a.gate, &a.up,
                   &a.merged_q, &a.merged_k}) {
    mat->rows = n_rows;
  }
  return a;
}

Activations Decoder::plan_memory(int64_t n) {
  // Layers may differ: each matrix is as wide as the widest layer needs, and narrower layers use
  // the leading part of its memory.
  int64_t q = 0, k = 0, v = 0, mixed = 0, d_ff = 0, merged_q = 0, merged_k = 0;
  for (const LayerSpec& layer : spec_.layers) {
    const AttentionSpec& a = layer.attention;
    q = std::max<int64_t>(q, int64_t{a.n_heads} * a.head_dim);
    k = std::max<int64_t>(k, int64_t{a.n_key_heads} * a.head_dim);
    v = std::max<int64_t>(v, int64_t{a.n_kv_heads} * a.value_dim);
    mixed = std::max<int64_t>(mixed, int64_t{a.n_heads} * a.value_dim);
    d_ff = std::max<int64_t>(d_ff, layer.ffn.d_ff);
    if (!a.merges_keys) continue;
    merged_q = std::max<int64_t>(merged_q, int64_t{a.n_heads} * a.head_dim);
    merged_k = std::max<int64_t>(merged_k, int64_t{a.n_kv_heads} * a.head_dim);
  }
  const int64_t d = spec_.d_model;
  constexpr int64_t kLineFloats = kCacheLine / sizeof(float);
  const auto padded = [&](int64_t width) {
    return (n * width + kLineFloats - 1) / kLineFloats * kLineFloats;
  };
  float* next = memory_.get<float>(
      static_cast<size_t>(3 * padded(d) + padded(q) + padded(k) + padded(v) + padded(mixed) +
                          2 * padded(d_ff) + padded(merged_q) + padded(merged_k)));
  const auto take = [&](int64_t width) {
    const Mat mat(next, n, width);
    next += padded(width);
    return mat;
  };
  Activations a;
  a.x = take(d);
  a.normed = take(d);
  a.block = take(d);
  a.q = take(q);
  a.k = take(k);
  a.v = take(v);
  a.mixed = take(mixed);
  a.gate = take(d_ff);
  a.up = take(d_ff);
  a.merged_q = take(merged_q);
  a.merged_k = take(merged_k);
  return a;
}

}  // namespace kve
