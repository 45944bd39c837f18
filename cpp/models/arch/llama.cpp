#include "models/arch/architectures.h"
#include "models/arch/common.h"

namespace kve {

// Llama 1/2/3, Mistral, SmolLM2 and their many relatives: pre-norm, gated SiLU, rotary embedding in
// the interleaved layout (the converter permutes the query and key weights).
ModelSpec describe_llama(const GgufFile& file) {
  const Hyperparameters hp(file);
  ModelSpec spec = read_common(hp);
  read_layers(hp, spec);
  spec.ropes = {read_rope(hp, RopeLayout::interleaved, spec.layers.front().attention.head_dim)};
  spec.logit_softcap = hp.real_or("final_logit_softcapping", 0, 0, 1e6);
  const int window = hp.integer_or("attention.sliding_window", 0, 0, kMaxContext);
  for (LayerSpec& layer : spec.layers) layer.attention.window = window;
  return spec;
}

}  // namespace kve
