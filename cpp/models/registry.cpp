#include <array>
#include <string_view>

#include "base/error.h"
#include "base/printable.h"
#include "models/arch/architectures.h"
#include "models/rope.h"
#include "models/spec.h"

namespace kve {
namespace {

struct Architecture {
  std::string_view name;  // general.architecture
  ModelSpec (*describe)(const GgufFile&);
};

constexpr std::array kArchitectures = {
    Architecture{"bloom", describe_bloom}, Architecture{"gemma3", describe_gemma3},
    Architecture{"gpt2", describe_gpt2},   Architecture{"llama", describe_llama},
    Architecture{"mpt", describe_mpt},
};

}  // namespace

ModelSpec describe(const GgufFile& file) {
  const auto name = file.get<std::string>("general.architecture");
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return architecture.describe(file);
    known += known.empty() ? "" : ", ";
    known += architecture.name;
  }
  throw UnsupportedError(
      message("general.architecture: expected one of ", known, ", found ", quoted(name)));
}

std::vector<LayerShape> ModelSpec::cache_shape() const {
  std::vector<LayerShape> shape;
  shape.reserve(layers.size());
  for (const LayerSpec& layer : layers) {
    const AttentionSpec& attention = layer.attention;
    shape.push_back(
        {attention.n_kv_heads, attention.head_dim, attention.value_dim, attention.window, nullptr});
    shape.back().latents = attention.latents;
    // Nothing was rotated, or it is mixed with other heads and cannot be turned back.
    if (attention.rope == kNoRope || attention.merges_keys) continue;
    const RopeTable rope(ropes[static_cast<size_t>(attention.rope)]);
    Rotation rotation{{rope.frequencies().begin(), rope.frequencies().end()},
                      rope.layout() == RopeLayout::interleaved};
    shape.back().rotation = std::make_shared<const Rotation>(std::move(rotation));
  }
  return shape;
}

}  // namespace kve
