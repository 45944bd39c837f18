// The tensors of a GGUF file, bound to the places where a ModelSpec uses them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/memory.h"
#include "gguf/gguf_file.h"
#include "kernels/backend.h"
#include "models/spec.h"

namespace kve {

// Small vectors (norms, biases) are widened to f32; empty where a model has none.
using Vector = std::vector<float>;

struct NormWeights {
  Vector weight, bias;
};

struct AttentionWeights {
  Weight q, k, v, o;
  Vector q_bias, k_bias, v_bias, o_bias;
  Vector q_norm, k_norm;  // [head_dim]
  Weight psi;  // [n_kv_heads * head_dim, key_group * head_dim]; none unless keys are merged
};

struct FfnWeights {
  Weight gate, up, down;  // no gate unless FfnSpec::gated
  Vector gate_bias, up_bias, down_bias;
};

struct LayerWeights {
  NormWeights attention_norm, ffn_norm;            // before the block
  NormWeights attention_post_norm, ffn_post_norm;  // after it (NormPlacement::sandwich)
  AttentionWeights attention;
  FfnWeights ffn;
};

// Points into the mapped file, which it keeps open.
class ModelWeights {
 public:
  // Throws FormatError for a missing tensor, a wrong shape or a type that cannot be multiplied
  // with.
  ModelWeights(std::shared_ptr<const GgufFile> file, const ModelSpec& spec);

  // Gives every weight that `backend` has a layout of its own for a copy in that layout, and lets
  // the system take back the file's pages. Throws CapacityError; nothing has changed then.
  void repack(Backend& backend);
  // Tells `backend` of all that stays as it is: norms, biases and what is not repacked.
  void keep(Backend& backend) const;
  size_t repacked_bytes() const { return repacked_.size(); }

  Weight embedding;            // [vocab_size, d_model]
  NormWeights embedding_norm;  // ModelSpec::embed_norm
  Weight positions;            // [n_ctx, d_model]; ModelSpec::learned_positions
  NormWeights output_norm;
  Weight output;  // [vocab_size, d_model]; the embedding again where they are tied
  std::vector<LayerWeights> layers;
  int64_t n_parameters = 0;  // of the whole file

 private:
  std::shared_ptr<const GgufFile> file_;
  LargeBlock repacked_;
};

}  // namespace kve
