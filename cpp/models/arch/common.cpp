#include "models/arch/common.h"

#include "base/printable.h"
#include "models/latents.h"

namespace kve {

ModelSpec read_common(const Hyperparameters& hp, NormKind norm) {
  const GgufFile& file = hp.file();
  if (file.tensors().empty()) {
    throw UnsupportedError(message(file.path().string(),
                                   ": a vocabulary without weights; only tokenize, detokenize, "
                                   "template and inspect work on it"));
  }
  if (hp.integer_or("expert_count", 0, 0, 1 << 16) > 0) {
    throw UnsupportedError(message(hp.key("expert_count"),
                                   ": mixtures of experts are not supported, found ",
                                   hp.integer_or("expert_count", 0, 0, 1 << 16), " experts"));
  }
  ModelSpec spec;
  spec.arch = hp.arch();
  spec.name = file.get_or<std::string>("general.name", "");
  spec.d_model = hp.integer("embedding_length", 1, kMaxWidth);
  spec.n_ctx = hp.integer("context_length", 1, kMaxContext);
  spec.norm_kind = norm;
  const bool rms = norm == NormKind::rms;
  spec.norm_eps =
      hp.real(rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", 0, 1);
  const TensorInfo& embedding = file.tensor("token_embd.weight");
  if (embedding.shape.size() != 2 || embedding.shape[1] > INT32_MAX) {
    throw FormatError(message("token_embd.weight: expected [", spec.d_model,
                              ", vocab_size], found ", embedding.shape_string()));
  }
  spec.vocab_size = static_cast<int>(embedding.shape[1]);
  return spec;
}

void read_layers(const Hyperparameters& hp, ModelSpec& spec) {
  const int n_layers = hp.integer("block_count", 1, kMaxLayers);
  const auto heads = hp.per_layer("attention.head_count", n_layers, 1, kMaxHeads);
  const auto kv_heads = hp.has("attention.head_count_kv")
                            ? hp.per_layer("attention.head_count_kv", n_layers, 1, kMaxHeads)
                            : heads;
  // Of files that `kvengine compress` wrote.
  const auto key_heads = hp.has("attention.key_head_count")
                             ? hp.per_layer("attention.key_head_count", n_layers, 1, kMaxHeads)
                             : kv_heads;
  const int latent_group =
      hp.has("attention.latent_group") ? hp.integer("attention.latent_group", 1, kMaxHeads) : 0;
  const auto d_ff = hp.per_layer("feed_forward_length", n_layers, 1, 4 * kMaxWidth);
  const int head_dim =
      hp.integer_or("attention.key_length", spec.d_model / heads[0], 1, kMaxHeadDim);
  const int value_dim = hp.integer_or("attention.value_length", head_dim, 1, kMaxHeadDim);

  spec.layers.resize(static_cast<size_t>(n_layers));
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    if (heads[i] % kv_heads[i] != 0) {
      throw FormatError(message(hp.key("attention.head_count_kv"), ": expected a divisor of the ",
                                heads[i], " query heads of layer ", i, ", found ", kv_heads[i]));
    }
    if (key_heads[i] % kv_heads[i] != 0 || heads[i] % key_heads[i] != 0) {
      throw FormatError(message(hp.key("attention.key_head_count"), ": expected a multiple of the ",
                                kv_heads[i], " kv heads that divides the ", heads[i],
                                " query heads of layer ", i, ", found ", key_heads[i]));
    }
    AttentionSpec& attention = spec.layers[i].attention;
    attention.n_heads = heads[i];
    attention.n_kv_heads = kv_heads[i];
    attention.n_key_heads = key_heads[i];
    attention.merges_keys = hp.has("attention.key_head_count");
    attention.head_dim = head_dim;
    attention.value_dim = value_dim;
    attention.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    spec.layers[i].ffn.d_ff = d_ff[i];
    if (latent_group > 0) {
      attention.latents = read_latents(hp.file(), static_cast<int>(i), attention, latent_group);
    }
  }
}

void read_gpt_layers(const Hyperparameters& hp, ModelSpec& spec, Activation activation) {
  read_layers(hp, spec);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    LayerSpec& layer = spec.layers[i];
    AttentionSpec& attention = layer.attention;
    if (attention.merges_keys || attention.latents != nullptr) {
      throw UnsupportedError(message(hp.arch(), ": expected heads that are merged in the weights, ",
                                     "found keys of layer ", i, " that are merged beside them"));
    }
    for (const char* name : {"attn_q_norm.weight", "attn_k_norm.weight", "ffn.act.scales"}) {
      const std::string full = message("blk.", i, ".", name);
      if (hp.file().find(full) != nullptr) {
        throw UnsupportedError(message(full, ": expected a model of ", hp.arch(), " without it"));
      }
    }
    attention.rope = kNoRope;
    attention.fused_qkv = true;
    layer.ffn.gated = false;
    layer.ffn.activation = activation;
  }
}

namespace {

void read_rope_scaling(const Hyperparameters& hp, RopeSpec& rope) {
  // "rope.scale_linear" is what files had before "rope.scaling.*".
  const float legacy = hp.real_or("rope.scale_linear", 1, 1e-6, 1e6);
  const std::string type = hp.text_or("rope.scaling.type", legacy != 1 ? "linear" : "none");
  rope.factor = hp.real_or("rope.scaling.factor", legacy, 0, 1e6);
  if (rope.factor == 0) rope.factor = 1;  // some converters write 0 for "no scaling"
  if (type == "none" || rope.factor == 1) {
    rope.scaling = RopeSpec::Scaling::none;
    rope.factor = 1;
  } else if (type == "linear") {
    rope.scaling = RopeSpec::Scaling::linear;
  } else if (type == "yarn") {
    rope.scaling = RopeSpec::Scaling::yarn;
    rope.original_ctx = hp.integer("rope.scaling.original_context_length", 1, kMaxContext);
    rope.attn_factor = hp.real_or("rope.scaling.attn_factor", 1, 1e-3, 1e3);
    rope.ext_factor = hp.real_or("rope.scaling.yarn_ext_factor", 1, 0, 1);
    rope.attn_factor *= hp.real_or("rope.scaling.yarn_attn_factor", 1, 1e-3, 1e3);
    rope.beta_fast = hp.real_or("rope.scaling.yarn_beta_fast", 32, 1e-3, 1e6);
    rope.beta_slow = hp.real_or("rope.scaling.yarn_beta_slow", 1, 1e-3, 1e6);
  } else {
    throw UnsupportedError(message(hp.key("rope.scaling.type"),
                                   ": expected none, linear or yarn, found ", quoted(type)));
  }
}

}  // namespace

RopeSpec read_rope(const Hyperparameters& hp, RopeLayout layout, int head_dim) {
  RopeSpec rope;
  rope.layout = layout;
  rope.rotary_dim = hp.integer_or("rope.dimension_count", head_dim, 2, head_dim);
  if (rope.rotary_dim % 2 != 0) {
    throw FormatError(message(hp.key("rope.dimension_count"), ": expected an even number, found ",
                              rope.rotary_dim));
  }
  rope.theta = hp.real_or("rope.freq_base", 10000, 1, 1e12);
  read_rope_scaling(hp, rope);
  if (const TensorInfo* factors = hp.file().find("rope_freqs.weight")) {
    if (factors->type != WeightType::f32 || factors->elements() != rope.rotary_dim / 2) {
      throw FormatError(message("rope_freqs.weight: expected F32 [", rope.rotary_dim / 2,
                                "], found ", format(factors->type).name, " ",
                                factors->shape_string()));
    }
    rope.freq_factors.resize(static_cast<size_t>(rope.rotary_dim / 2));
    format(factors->type).decode(factors->data, rope.freq_factors.data(), factors->elements());
    for (const float factor : rope.freq_factors) {
      if (!std::isfinite(factor) || factor <= 0) {
        throw FormatError(message("rope_freqs.weight: expected positive numbers, found ", factor));
      }
    }
  }
  return rope;
}

}  // namespace kve
