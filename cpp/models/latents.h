// The bases that a file of `kvengine compress --mode latent` has for every layer.
#pragma once

#include <memory>

#include "gguf/gguf_file.h"
#include "models/spec.h"

namespace kve {

// blk.N.attn_k_latent.weight and blk.N.attn_v_latent.weight: F32 or F16 [group * dim, groups *
// rank], the orthonormal rows of one group of `group` kv heads after the other. Throws FormatError
// where they are missing, do not fit the layer or are not finite.
std::shared_ptr<const LatentBases> read_latents(const GgufFile& file, int layer,
                                                const AttentionSpec& attention, int group);

}  // namespace kve
