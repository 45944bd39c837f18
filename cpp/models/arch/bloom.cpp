#include "models/arch/alibi.h"
#include "models/arch/architectures.h"
#include "models/arch/common.h"

namespace kve {
namespace {

constexpr double kMaxBias = 8;  // files do not say

}  // namespace

// BLOOM and BLOOMZ (arXiv:2211.05100): linear biases instead of position embeddings, layer norms
// with biases, one of them after the embedding.
ModelSpec describe_bloom(const GgufFile& file) {
  const Hyperparameters hp(file);
  ModelSpec spec = read_common(hp, NormKind::layer);
  read_gpt_layers(hp, spec, Activation::gelu_tanh);
  spec.embed_norm = true;
  for (LayerSpec& layer : spec.layers) {
    layer.attention.alibi = alibi_slopes(layer.attention.n_heads, kMaxBias);
  }
  return spec;
}

}  // namespace kve
