#include <cmath>

#include "models/arch/architectures.h"
#include "models/arch/common.h"

namespace kve {
namespace {

// Gemma 3's 27B scales scores by the width per head, the others by head_dim
// (query_pre_attn_scalar); files do not say, its 62 layers do.
constexpr size_t kLayersOf27B = 62;

}  // namespace

// Gemma 3 (arXiv:2503.19786): five layers with a sliding window, then a global one; the local ones
// rotate with their own base and without context extension. Queries and keys are normalised, every
// block is normed before and after, embeddings are scaled by sqrt(d_model).
ModelSpec describe_gemma3(const GgufFile& file) {
  const Hyperparameters hp(file);
  ModelSpec spec = read_common(hp);
  read_layers(hp, spec);
  spec.embed_scale = std::sqrt(static_cast<float>(spec.d_model));
  spec.logit_softcap = hp.real_or("final_logit_softcapping", 0, 0, 1e6);
  const float softcap = hp.real_or("attn_logit_softcapping", 0, 0, 1e6);

  const RopeSpec global =
      read_rope(hp, RopeLayout::half_split, spec.layers.front().attention.head_dim);
  RopeSpec local = global;
  local.theta = hp.real_or("rope.freq_base_swa", 10000, 1, 1e12);
  local.scaling = RopeSpec::Scaling::none;
  local.factor = 1;
  spec.ropes = {global, local};

  const int window = hp.integer_or("attention.sliding_window", 0, 0, kMaxContext);
  const int pattern = hp.integer_or("attention.sliding_window_pattern", 6, 1, kMaxLayers);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    LayerSpec& layer = spec.layers[i];
    const bool is_local = window > 0 && (i + 1) % static_cast<size_t>(pattern) != 0;
    layer.norm = NormPlacement::sandwich;
    layer.ffn.activation = Activation::gelu_tanh;
    layer.attention.qk_norm = true;
    layer.attention.softcap = softcap;
    layer.attention.window = is_local ? window : 0;
    layer.attention.rope = is_local ? 1 : 0;
    if (spec.layers.size() == kLayersOf27B) {
      layer.attention.scale =
          1 / std::sqrt(static_cast<float>(spec.d_model / layer.attention.n_heads));
    }
  }
  return spec;
}

}  // namespace kve
