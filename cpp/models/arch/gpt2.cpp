#include "models/arch/architectures.h"
#include "models/arch/common.h"

namespace kve {

// GPT-2 and its relatives: learned position embeddings, layer norms and products with biases.
ModelSpec describe_gpt2(const GgufFile& file) {
  const Hyperparameters hp(file);
  ModelSpec spec = read_common(hp, NormKind::layer);
  read_gpt_layers(hp, spec, Activation::gelu_tanh);
  spec.learned_positions = true;
  return spec;
}

}  // namespace kve
