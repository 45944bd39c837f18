#include "models/latents.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"

namespace kve {
namespace {

// Of all groups, from a tensor that is checked.
std::vector<BasisData> read_side(const GgufFile& file, const std::string& name, int n_groups,
                                 int width) {
  const TensorInfo& tensor = file.tensor(name);
  const bool floats = tensor.type == WeightType::f32 || tensor.type == WeightType::f16;
  const int64_t rank = tensor.rows() / n_groups;
  if (!floats || tensor.row_length() != width || tensor.rows() != rank * n_groups || rank < 1 ||
      rank > width) {
    throw FormatError(message(name, ": expected F32 or F16 rows of ", width, " values, up to ",
                              width, " for each of ", n_groups, " groups, found ",
                              format(tensor.type).name, " ", tensor.shape_string()));
  }
  std::vector<float> rows(static_cast<size_t>(tensor.elements()));
  format(tensor.type).decode(tensor.data, rows.data(), tensor.elements());
  if (!std::ranges::all_of(rows, [](float value) { return std::isfinite(value); })) {
    throw FormatError(message(name, ": expected finite numbers"));
  }
  std::vector<BasisData> out(static_cast<size_t>(n_groups));
  const float* group = rows.data();
  for (BasisData& basis : out) {
    basis.dim = basis.block = width;
    basis.width = basis.block_width = static_cast<int>(rank);
    basis.lift.resize(static_cast<size_t>(width) * static_cast<size_t>(rank));
    for (int64_t c = 0; c < rank; ++c) {
      for (int64_t j = 0; j < width; ++j) {
        basis.lift[static_cast<size_t>(j * rank + c)] = group[c * width + j];
      }
    }
    group += rank * width;
  }
  return out;
}

}  // namespace

std::shared_ptr<const LatentBases> read_latents(const GgufFile& file, int layer,
                                                const AttentionSpec& attention, int group) {
  if (attention.merges_keys || attention.n_kv_heads % group != 0) {
    throw FormatError(message("attention.latent_group: expected a divisor of the ",
                              attention.n_kv_heads, " kv heads of layer ", layer,
                              ", which are not merged, found ", group));
  }
  const std::string prefix = message("blk.", layer, ".");
  const int n_groups = attention.n_kv_heads / group;
  LatentBases out;
  out.group = group;
  out.keys = read_side(file, prefix + "attn_k_latent.weight", n_groups, group * attention.head_dim);
  out.values =
      read_side(file, prefix + "attn_v_latent.weight", n_groups, group * attention.value_dim);
  return std::make_shared<const LatentBases>(std::move(out));
}

}  // namespace kve
