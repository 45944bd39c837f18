#include "models/weights.h"

#include <cmath>

#include "base/error.h"
#include "base/read_soon.h"

namespace kve {
namespace {

// Looks tensors up by name and checks them against the expected shape.
class Binder {
 public:
  explicit Binder(const GgufFile& file) : file_(file) {}

  Weight matrix(const std::string& name, int64_t rows, int64_t cols) const {
    const TensorInfo& tensor = file_.tensor(name);
    check(tensor, {cols, rows});
    const WeightFormat& type = format(tensor.type);
    switch (tensor.type) {
      case WeightType::i8:
      case WeightType::i16:
      case WeightType::i32:
      case WeightType::i64:
      case WeightType::f64:
        throw FormatError(message(name, ": expected a weight type, found ", type.name));
      default:
        return {tensor.type, rows, cols, row_bytes(tensor.type, cols), tensor.data};
    }
  }

  Vector vector(const std::string& name, int64_t size) const {
    return widen(file_.tensor(name), size);
  }
  Vector vector_or_empty(const std::string& name, int64_t size) const {
    const TensorInfo* tensor = file_.find(name);
    return tensor == nullptr ? Vector{} : widen(*tensor, size);
  }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }

 private:
  static void check(const TensorInfo& tensor, const std::vector<int64_t>& shape) {
    std::vector<int64_t> found = tensor.shape;
    while (found.size() > shape.size() && found.back() == 1) found.pop_back();
    if (found == shape) return;
    std::string expected = "[";
    for (const int64_t size : shape) {
      expected += (expected.size() > 1 ? ", " : "") + std::to_string(size);
    }
    throw FormatError(
        message(tensor.name, ": expected ", expected, "], found ", tensor.shape_string()));
  }

  static Vector widen(const TensorInfo& tensor, int64_t size) {
    check(tensor, {size});
    Vector values(static_cast<size_t>(size));
    format(tensor.type).decode(tensor.data, values.data(), size);
    for (const float value : values) {
      if (!std::isfinite(value)) {
        throw FormatError(message(tensor.name, ": expected finite numbers, found ", value));
      }
    }
    return values;
  }

  const GgufFile& file_;
};

NormWeights bind_norm(const Binder& bind, const std::string& name, const ModelSpec& spec) {
  NormWeights w;
  w.weight = bind.vector(name + ".weight", spec.d_model);
  if (spec.norm_kind == NormKind::layer)
    w.bias = bind.vector_or_empty(name + ".bias", spec.d_model);
  return w;
}

// Rows [first, first + rows) of a matrix.
Weight rows_of(const Weight& whole, int64_t first, int64_t rows) {
  Weight part = whole;
  part.rows = rows;
  part.data += static_cast<size_t>(first) * whole.row_bytes;
  return part;
}

// One tensor with the rows of all queries, then of all keys, then of all values.
void bind_fused(const Binder& bind, const std::string& name, int64_t d_model, int64_t q, int64_t k,
                int64_t v, AttentionWeights& w) {
  const Weight whole = bind.matrix(name + ".weight", q + k + v, d_model);
  w.q = rows_of(whole, 0, q);
  w.k = rows_of(whole, q, k);
  w.v = rows_of(whole, q + k, v);
  const Vector bias = bind.vector_or_empty(name + ".bias", q + k + v);
  if (bias.empty()) return;
  w.q_bias.assign(bias.begin(), bias.begin() + q);
  w.k_bias.assign(bias.begin() + q, bias.begin() + q + k);
  w.v_bias.assign(bias.begin() + q + k, bias.end());
}

AttentionWeights bind_attention(const Binder& bind, const std::string& prefix, int64_t d_model,
                                const AttentionSpec& spec) {
  const int64_t q = int64_t{spec.n_heads} * spec.head_dim;
  const int64_t k = int64_t{spec.n_key_heads} * spec.head_dim;
  const int64_t v = int64_t{spec.n_kv_heads} * spec.value_dim;
  AttentionWeights w;
  if (spec.fused_qkv) {
    bind_fused(bind, prefix + "attn_qkv", d_model, q, k, v, w);
  } else {
    w.q = bind.matrix(prefix + "attn_q.weight", q, d_model);
    w.k = bind.matrix(prefix + "attn_k.weight", k, d_model);
    w.v = bind.matrix(prefix + "attn_v.weight", v, d_model);
    w.q_bias = bind.vector_or_empty(prefix + "attn_q.bias", q);
    w.k_bias = bind.vector_or_empty(prefix + "attn_k.bias", k);
    w.v_bias = bind.vector_or_empty(prefix + "attn_v.bias", v);
  }
  w.o = bind.matrix(prefix + "attn_output.weight", d_model, int64_t{spec.n_heads} * spec.value_dim);
  w.o_bias = bind.vector_or_empty(prefix + "attn_output.bias", d_model);
  if (spec.qk_norm) {
    w.q_norm = bind.vector(prefix + "attn_q_norm.weight", spec.head_dim);
    w.k_norm = bind.vector(prefix + "attn_k_norm.weight", spec.head_dim);
  }
  if (spec.merges_keys) {
    w.psi = bind.matrix(prefix + "attn_k_psi.weight", int64_t{spec.n_kv_heads} * spec.head_dim,
                        int64_t{spec.key_group()} * spec.head_dim);
    const WeightType type = w.psi.type;
    if (type != WeightType::f32 && type != WeightType::f16 && type != WeightType::bf16) {
      throw FormatError(message(prefix, "attn_k_psi.weight: expected F32, F16 or BF16, found ",
                                format(type).name));
    }
  }
  return w;
}

FfnWeights bind_ffn(const Binder& bind, const std::string& prefix, int64_t d_model,
                    const FfnSpec& spec) {
  FfnWeights w;
  if (spec.gated) {
    w.gate = bind.matrix(prefix + "ffn_gate.weight", spec.d_ff, d_model);
    w.gate_bias = bind.vector_or_empty(prefix + "ffn_gate.bias", spec.d_ff);
  }
  w.up = bind.matrix(prefix + "ffn_up.weight", spec.d_ff, d_model);
  w.down = bind.matrix(prefix + "ffn_down.weight", d_model, spec.d_ff);
  w.up_bias = bind.vector_or_empty(prefix + "ffn_up.bias", spec.d_ff);
  w.down_bias = bind.vector_or_empty(prefix + "ffn_down.bias", d_model);
  return w;
}

}  // namespace

ModelWeights::ModelWeights(std::shared_ptr<const GgufFile> file, const ModelSpec& spec)
    : file_(std::move(file)) {
  const Binder bind(*file_);
  embedding = bind.matrix("token_embd.weight", spec.vocab_size, spec.d_model);
  if (spec.embed_norm) embedding_norm = bind_norm(bind, "token_embd_norm", spec);
  if (spec.learned_positions) {
    positions = bind.matrix("position_embd.weight", spec.n_ctx, spec.d_model);
  }
  output_norm = bind_norm(bind, "output_norm", spec);
  output = bind.has("output.weight") ? bind.matrix("output.weight", spec.vocab_size, spec.d_model)
                                     : embedding;
  layers.reserve(spec.layers.size());
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const std::string prefix = message("blk.", i, ".");
    LayerWeights w;
    w.attention_norm = bind_norm(bind, prefix + "attn_norm", spec);
    w.ffn_norm = bind_norm(bind, prefix + "ffn_norm", spec);
    if (layer.norm == NormPlacement::sandwich) {
      w.attention_post_norm = bind_norm(bind, prefix + "post_attention_norm", spec);
      w.ffn_post_norm = bind_norm(bind, prefix + "post_ffw_norm", spec);
    }
    w.attention = bind_attention(bind, prefix, spec.d_model, layer.attention);
    w.ffn = bind_ffn(bind, prefix, spec.d_model, layer.ffn);
    layers.push_back(std::move(w));
  }
  for (const TensorInfo& tensor : file_->tensors()) n_parameters += tensor.elements();
  // Tokens pick rows in no order, so that most of them would wait for the disk.
  read_soon({embedding.data, static_cast<size_t>(embedding.rows) * embedding.row_bytes});
}

void ModelWeights::repack(Backend& backend) {
  // In the order in which a forward pass reads them.
  std::vector<Weight*> weights;
  for (LayerWeights& w : layers) {
    weights.insert(weights.end(), {&w.attention.q, &w.attention.k, &w.attention.v, &w.attention.o});
    if (w.ffn.gate) weights.push_back(&w.ffn.gate);
    weights.insert(weights.end(), {&w.ffn.up, &w.ffn.down});
  }
  weights.push_back(&output);
  size_t total = 0;
  for (const Weight* weight : weights) total += backend.repacked_bytes(*weight);
  if (total == 0) return;
  repacked_ = LargeBlock(std::make_shared<MemoryCounter>(backend.memory()), total);
  std::byte* next = repacked_.data();
  for (Weight* weight : weights) {
    const size_t bytes = backend.repacked_bytes(*weight);
    if (bytes == 0) continue;
    backend.repack(*weight, next);
    weight->repacked = next;
    next += bytes;
    file_->forget_pages({weight->data, static_cast<size_t>(weight->rows) * weight->row_bytes});
  }
}

void ModelWeights::keep(Backend& backend) const {
  const auto keep = [&](const Vector& vector) {
    if (!vector.empty()) backend.keep(std::as_bytes(std::span(vector)));
  };
  const auto keep_norm = [&](const NormWeights& norm) {
    keep(norm.weight);
    keep(norm.bias);
  };
  keep_norm(embedding_norm);
  keep_norm(output_norm);
  for (const LayerWeights& layer : layers) {
    for (const NormWeights* norm : {&layer.attention_norm, &layer.ffn_norm,
                                    &layer.attention_post_norm, &layer.ffn_post_norm}) {
      keep_norm(*norm);
    }
    const AttentionWeights& a = layer.attention;
    for (const Vector* vector : {&a.q_bias, &a.k_bias, &a.v_bias, &a.o_bias, &a.q_norm, &a.k_norm,
                                 &layer.ffn.gate_bias, &layer.ffn.up_bias, &layer.ffn.down_bias}) {
      keep(*vector);
    }
    if (a.psi) backend.keep({a.psi.data, static_cast<size_t>(a.psi.rows) * a.psi.row_bytes});
  }
}

}  // namespace kve
