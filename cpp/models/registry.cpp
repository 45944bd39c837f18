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
    Architecture{"gemma3", describe_gemma3},
    Architecture{"llama", describe_llama},
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
    if (attention.merges_keys) continue;  // what was rotated is mixed: it cannot be turned back
    const RopeTable rope(ropes[static_cast<size_t>(attention.rope)]);
    Rotation rotation{{rope.frequencies().begin(), rope.frequencies().end()},
                      rope.layout() == RopeLayout::interleaved};
    shape.back().rotation = std::make_shared<const Rotation>(std::move(rotation));
  }
  return shape;
}

}  // namespace kve
