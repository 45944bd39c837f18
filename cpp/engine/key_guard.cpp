#include "engine/key_guard.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/error.h"
#include "formats/weight_formats.h"

namespace kve {
namespace {

// Floating levels are finer near zero by orders of magnitude: their steps do not grow with the
// range.
bool has_even_steps(const GroupCoding& coding) {
  return coding.coding != Coding::e4m3 && coding.coding != Coding::e5m2;
}

// Whether a scale is for several channels of one token, bias included.
bool codes_bias(const SideSpec& keys, const CodecSpec& codec) {
  return !codec.is_float() && codec.per == Per::token && codec.channels == Channels::plain &&
         keys.projector.kind != ProjectorSpec::Kind::klt && has_even_steps(codec.coding);
}

// The largest coefficient that a bias alone gives a row.
float range_of(const KeyBias& bias, const ProjectorSpec& projector, int head_dim) {
  using Kind = ProjectorSpec::Kind;
  switch (projector.kind) {
    case Kind::hadamard:
    case Kind::rotation: {
      // Spread over all channels as a Gaussian is, of which one in 300 exceeds three deviations.
      const float deviation = bias.norm / std::sqrt(static_cast<float>(head_dim));
      return std::min(bias.norm, 3 * deviation);
    }
    case Kind::lowrank:
      return bias.norm;  // it is the first singular vector
    default:
      return bias.largest;
  }
}

// Beside keys that have no bias, whose largest channel is about three times their spread.
constexpr float kLeastRange = 4;

struct Damage {
  const KeyBias* bias = nullptr;
  float range = 0;
  float step = 0;  // of the codes, in spreads
  int bits = 0;
};

std::string rounded(float value) {
  char text[32];
  std::snprintf(text, sizeof(text), value < 10 ? "%.1f" : "%.0f", static_cast<double>(value));
  return text;
}

std::string advice(int bits) {
  if (bits > 4) return "int8:per=channel,group=64 for keys";
  return bits == 4 ? "best4" : bits == 3 ? "best3" : "best2";
}

}  // namespace

std::vector<KeyBias> key_biases(const ModelSpec& spec, const ModelWeights& weights) {
  std::vector<KeyBias> out;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const AttentionSpec& attention = spec.layers[i].attention;
    const Vector& bias = weights.layers[i].attention.k_bias;
    if (bias.empty() || attention.qk_norm) continue;
    const NormWeights& norm = weights.layers[i].attention_norm;
    const Weight& keys = weights.layers[i].attention.k;
    std::vector<float> row(static_cast<size_t>(keys.cols));
    for (int head = 0; head < attention.n_key_heads; ++head) {
      KeyBias found{.layer = static_cast<int>(i), .head = head / attention.key_group()};
      double squares = 0;
      double spread = 0;
      for (int c = 0; c < attention.head_dim; ++c) {
        const int64_t at = int64_t{head} * attention.head_dim + c;
        format(keys.type).decode(keys.data + static_cast<size_t>(at) * keys.row_bytes, row.data(),
                                 keys.cols);
        double value = bias[static_cast<size_t>(at)];
        for (size_t j = 0; j < row.size(); ++j) {
          const double weight = static_cast<double>(row[j]) * norm.weight[j];
          spread += weight * weight;
          // What a norm adds moves all keys as well.
          if (!norm.bias.empty()) value += static_cast<double>(row[j]) * norm.bias[j];
        }
        found.largest = std::max(found.largest, static_cast<float>(std::abs(value)));
        squares += value * value;
      }
      found.norm = static_cast<float>(std::sqrt(squares));
      found.spread = static_cast<float>(std::sqrt(spread / attention.head_dim));
      if (found.norm > 0 && std::isfinite(found.spread)) out.push_back(found);
    }
  }
  return out;
}

std::string key_bias_warning(const std::vector<KeyBias>& biases, int n_layers, int head_dim,
                             const CacheSpec& cache) {
  Damage worst;
  int layers = 0;
  int last_layer = -1;
  for (const KeyBias& bias : biases) {
    const SideSpec& keys = cache.side(bias.layer, n_layers, bias.head, false);
    const float range = range_of(bias, keys.projector, head_dim);
    for (int tier = 0; tier < keys.n_tiers(); ++tier) {
      if (!codes_bias(keys, keys.codec_of(tier))) continue;
      const int bits = keys.codec_of(tier).coding.bits;
      const float steps = static_cast<float>((1 << bits) - 1);
      // Keys without weights do not differ at all: nothing is lost.
      const float step = bias.spread > 0 ? 2 * range / steps / bias.spread : 0;
      if (step <= 1 || range <= kLeastRange * bias.spread) continue;
      layers += bias.layer != last_layer ? 1 : 0;
      last_layer = bias.layer;
      if (step > worst.step) worst = {&bias, range, step, bits};
    }
  }
  if (worst.bias == nullptr) return "";
  const KeyBias& bias = *worst.bias;
  return message(
      "cache ", cache.str(), ": the keys of ", layers, " of ", n_layers,
      " layers have biases that ", worst.bits, "-bit codes of a token cannot bear (layer ",
      bias.layer, ", kv head ", bias.head, ": up to ", rounded(bias.largest),
      " in a channel, where keys spread by ", rounded(bias.spread), "; a step of the codes is ",
      rounded(worst.step),
      " times that); on Qwen2.5-0.5B, in a simulation, rotated 4-bit codes of tokens had a "
      "mean KLD of 1.25, and codes as best4 has them one of 0.002; use ",
      advice(worst.bits));
}

}  // namespace kve
