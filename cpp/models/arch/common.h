// What most architectures read in the same way.
#pragma once

#include "models/arch/hyperparameters.h"
#include "models/spec.h"

namespace kve {

// Name, width, context, vocabulary size (that of the embedding table) and norm epsilon; checks that
// the file has tensors at all. Layers and ropes are left empty.
ModelSpec read_common(const Hyperparameters& hp, NormKind norm = NormKind::rms);
// Heads and their sizes for every layer, with scale 1 / sqrt(head_dim) and the first rope; d_ff.
void read_layers(const Hyperparameters& hp, ModelSpec& spec);
// Layers as GPT-2 has them: fused queries, keys and values, no rope, an FFN without a gate. Refuses
// tensors of its variants that would be ignored.
void read_gpt_layers(const Hyperparameters& hp, ModelSpec& spec, Activation activation);
// The rope of rope.* keys, including its context extension and the rope_freqs.weight tensor.
RopeSpec read_rope(const Hyperparameters& hp, RopeLayout layout, int head_dim);

}  // namespace kve
