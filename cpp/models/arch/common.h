// What most architectures read in the same way.
#pragma once

#include "models/arch/hyperparameters.h"
#include "models/spec.h"

namespace kve {

// Name, width, context, vocabulary size (that of the embedding table) and norm epsilon; checks that
// the file has tensors at all. Layers and ropes are left empty.
ModelSpec read_common(const Hyperparameters& hp);
// Heads and their sizes for every layer, with scale 1 / sqrt(head_dim) and the first rope; d_ff.
void read_layers(const Hyperparameters& hp, ModelSpec& spec);
// The rope of rope.* keys, including its context extension and the rope_freqs.weight tensor.
RopeSpec read_rope(const Hyperparameters& hp, RopeLayout layout, int head_dim);

}  // namespace kve
