// models/: what to compute. An architecture is data: a ModelSpec, made from a GGUF file's metadata
// by one function per architecture (arch/). Nothing else asks which architecture it is running.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "gguf/gguf_file.h"
#include "kernels/backend.h"

namespace kve {

// Rotary position embedding (arXiv:2104.09864) and its context extensions.
struct RopeSpec {
  enum class Scaling { none, linear, yarn };

  int rotary_dim = 0;  // leading channels of a head that are rotated
  float theta = 10000;
  RopeLayout layout = RopeLayout::half_split;
  Scaling scaling = Scaling::none;
  float factor = 1;  // context extension, >= 1 as a rule
  // YaRN (arXiv:2309.00071) only.
  int original_ctx = 0;
  float attn_factor = 1;  // further factor on the rotated length, beside YaRN's own
  float ext_factor = 1;
  float beta_fast = 32;
  float beta_slow = 1;
  // Divisors of the frequencies, [rotary_dim / 2] or empty: Llama 3's own scaling.
  std::vector<float> freq_factors;

  bool operator==(const RopeSpec&) const = default;
};

// Positions enter in another way: as biases of scores, or with the embedding.
inline constexpr int kNoRope = -1;

struct AttentionSpec {
  int n_heads = 0;
  int n_kv_heads = 0;   // in the cache
  int n_key_heads = 0;  // computed; see merges_keys
  int head_dim = 0;     // of queries and keys
  int value_dim = 0;    // of values
  float scale = 1;      // on scores
  float softcap = 0;    // 0: none
  int window = 0;       // 0: none; else a query at p sees positions > p - window
  int rope = 0;         // index into ModelSpec::ropes, or kNoRope
  bool qk_norm = false;
  bool fused_qkv = false;    // one tensor holds the rows of queries, keys and values
  float clamp = 0;           // 0: none; else queries, keys and values are cut to [-clamp, clamp]
  std::vector<float> alibi;  // slopes of linear biases (arXiv:2108.12409), [n_heads]; empty: none

  // KV-head compression (arXiv 2406.07056): a head of the cache holds what key_group() rotated
  // heads of keys have in common, AttentionWeights::psi times their values.
  bool merges_keys = false;
  int key_group() const { return n_key_heads / n_kv_heads; }
  // The same before the rotary embedding, which the cache applies when it lifts keys out of what a
  // group has in common. Null: none.
  std::shared_ptr<const LatentBases> latents;
};

struct FfnSpec {
  int d_ff = 0;
  Activation activation = Activation::silu;  // of the gate
  bool gated = true;                         // false: down(activation(up)), without a gate
};

enum class NormKind {
  rms,    // x / rms(x) * weight
  layer,  // (x - mean) / deviation * weight + bias
};

enum class NormPlacement {
  pre,       // x += f(norm(x))
  sandwich,  // x += norm(f(norm(x)))
};

struct LayerSpec {
  AttentionSpec attention;
  FfnSpec ffn;
  NormPlacement norm = NormPlacement::pre;
};

struct ModelSpec {
  std::string arch;
  std::string name;  // general.name, may be empty
  int d_model = 0;
  int vocab_size = 0;
  int n_ctx = 0;                       // trained for
  NormKind norm_kind = NormKind::rms;  // of all norms
  float norm_eps = 1e-5f;
  bool embed_norm = false;         // embeddings are normed
  bool learned_positions = false;  // a row for each of n_ctx positions is added to the embedding
  float embed_scale = 1;
  float logit_softcap = 0;  // 0: none
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;

  std::vector<LayerShape> cache_shape() const;
};

// Finds general.architecture in the registry (models/registry.cpp). Throws UnsupportedError for an
// architecture or feature that is not there, FormatError for hyper-parameters that are missing or
// contradict each other.
ModelSpec describe(const GgufFile& file);

}  // namespace kve
