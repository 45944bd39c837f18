#include "models/arch/alibi.h"
#include "models/arch/architectures.h"
#include "models/arch/common.h"

namespace kve {

// MPT: linear biases or learned position embeddings, no biases as a rule, queries, keys and values
// that may be clamped.
ModelSpec describe_mpt(const GgufFile& file) {
  const Hyperparameters hp(file);
  ModelSpec spec = read_common(hp, NormKind::layer);
  read_gpt_layers(hp, spec, Activation::gelu_erf);
  spec.learned_positions = file.find("position_embd.weight") != nullptr;
  const float max_bias = hp.real_or("attention.max_alibi_bias", 0, 0, 1024);
  if (max_bias == 0 && !spec.learned_positions) {
    throw FormatError(
        message(hp.key("attention.max_alibi_bias"),
                ": expected a number above 0 or position_embd.weight, found neither"));
  }
  const float clamp = hp.real_or("attention.clamp_kqv", 0, 0, 1e9);
  for (LayerSpec& layer : spec.layers) {
    layer.attention.clamp = clamp;
    if (max_bias > 0) layer.attention.alibi = alibi_slopes(layer.attention.n_heads, max_bias);
  }
  return spec;
}

}  // namespace kve
