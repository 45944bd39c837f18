// Models whose keys codes of few bits ruin: those with large biases (Qwen2.5 and its kin).
//
// A bias moves a channel of all keys by the same amount. It is far larger than what tells keys from
// each other, and codes with a scale for several channels of one token spend their range on it: a
// step between codes is then longer than keys differ. Codes by channel have an offset for it, and
// a centred page does not hold it.
#pragma once

#include <string>
#include <vector>

#include "cache/spec.h"
#include "models/spec.h"
#include "models/weights.h"

namespace kve {

// The bias of one head's keys, before they are rotated.
struct KeyBias {
  int layer = 0;
  int head = 0;       // of the cache
  float largest = 0;  // magnitude in one channel
  float norm = 0;     // of all channels
  // What the weights add to it: root mean square over the channels, for inputs of which the
  // normalised values do not depend on each other.
  float spread = 0;
};

// Of all heads that have one. Heads whose keys are normalised after the bias was added do not
// count. Reads the weights of keys that have a bias.
std::vector<KeyBias> key_biases(const ModelSpec& spec, const ModelWeights& weights);

// A sentence that says what goes wrong and what to use, where a layer's keys are written with steps
// that are longer than the spread; else empty.
std::string key_bias_warning(const std::vector<KeyBias>& biases, int n_layers, int head_dim,
                             const CacheSpec& cache);

}  // namespace kve
