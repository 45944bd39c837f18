#include "cache/calibrated_bases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/printable.h"

namespace kve {
namespace {

constexpr uint32_t kVersion = 1;
constexpr uint32_t kMostHeads = 1 << 16;
constexpr int64_t kMostValues = 1 << 16;  // of a group's row
constexpr int kRankStep = 32;             // of ranks that are a share: Palu's
// Of queries; what is divided by their roots stays within binary16's reach.
constexpr float kLeastMetric = 1e-12f;
constexpr float kMostMetric = 1e12f;

uint32_t number(const GgufFile& file, const char* key, uint32_t most) {
  const auto value = file.get<uint32_t>(key);
  if (value >= 1 && value <= most) return value;
  throw FormatError(message(printable(file.path().string(), 1024), ": ", key, ": expected 1 to ",
                            most, ", found ", value));
}

// A tensor of f32, its rows of `row` values. `n_rows` 0: any number.
const TensorInfo& tensor_of(const GgufFile& file, const std::string& name, int64_t row,
                            int64_t n_rows) {
  const TensorInfo& tensor = file.tensor(name);
  const bool right = tensor.type == WeightType::f32 && tensor.row_length() == row &&
                     (n_rows == 0 ? tensor.rows() <= row : tensor.rows() == n_rows);
  if (!right) {
    throw FormatError(message(printable(file.path().string(), 1024), ": ", name,
                              ": expected F32 rows of ", row, " values, found ",
                              format(tensor.type).name, " ", tensor.shape_string()));
  }
  return tensor;
}

// How many of the leading components hold `percent` of the energy.
int rank_of_energy(std::span<const float> energy, int percent) {
  double total = 0;
  for (const float value : energy) total += value;
  double kept = 0;
  int rank = 0;
  while (rank < static_cast<int>(energy.size()) && kept < total * percent / 100 * (1 - 1e-12)) {
    kept += energy[static_cast<size_t>(rank++)];
  }
  return std::max(1, rank);
}

int rank_of(std::span<const float> energy, int width, const ProjectorSpec& projector) {
  if (projector.rank > 0) return projector.rank;
  if (projector.energy > 0) return rank_of_energy(energy, projector.energy);
  const int steps = (width * projector.share + 50 * kRankStep) / (100 * kRankStep);
  return std::min(width, std::max(1, steps) * kRankStep);
}

// Copies values that a hostile file may have made NaN, infinite or not aligned.
std::vector<float> finite_values(const TensorInfo& tensor, const std::string& path) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  std::memcpy(values.data(), tensor.data, tensor.bytes);
  if (std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) return values;
  throw FormatError(message(path, ": ", tensor.name, ": expected finite numbers"));
}

void check_energy(std::span<const float> energy, const std::string& name, const std::string& path) {
  const bool falls = std::ranges::is_sorted(energy, std::ranges::greater{});
  if (falls && energy.back() >= 0) return;
  throw FormatError(
      message(path, ": ", name, ": expected energies that fall and are not negative"));
}

// Rows need not be at right angles for a cache to be safe, only for it to be any good: the checksum
// and their lengths tell other files apart.
void check_lengths(const float* rows, int rank, int64_t width, const std::string& name,
                   const std::string& path) {
  for (int c = 0; c < rank; ++c) {
    double length = 0;
    for (int64_t j = 0; j < width; ++j) {
      length += static_cast<double>(rows[c * width + j]) * rows[c * width + j];
    }
    if (std::abs(length - 1) < 1e-3) continue;
    throw FormatError(message(path, ": ", name, ": expected rows of length 1, found row ", c,
                              " of length ", std::sqrt(length)));
  }
}

}  // namespace

uint64_t bases_checksum(const GgufFile& file) {
  uint64_t hash = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    hash = hash64(std::as_bytes(std::span(tensor.name.data(), tensor.name.size())), hash);
    hash = hash64({tensor.data, tensor.bytes}, hash);
  }
  return hash;
}

CalibratedBases CalibratedBases::open(const std::string& path) {
  return CalibratedBases(GgufFile::open(path));
}

CalibratedBases::CalibratedBases(std::shared_ptr<const GgufFile> file) : file_(std::move(file)) {
  const std::string path = printable(file_->path().string(), 1024);
  const auto architecture = file_->get_or<std::string>("general.architecture", "");
  if (architecture != "kvengine-bases") {
    throw FormatError(message(path,
                              ": expected bases that `kvengine calibrate --bases` wrote, found ",
                              architecture.empty() ? "none" : quoted(architecture)));
  }
  const auto version = file_->get<uint32_t>("kvengine.bases.version");
  if (version != kVersion) {
    throw UnsupportedError(
        message(path, ": expected bases of version ", kVersion, ", found version ", version));
  }
  layers_ = static_cast<int>(number(*file_, "kvengine.bases.layers", kMaxSpecLayers));
  group_ = static_cast<int>(number(*file_, "kvengine.bases.group", kMostHeads));
  model_ = file_->get<uint64_t>("kvengine.bases.model");
  checksum_ = file_->get<uint64_t>("kvengine.bases.checksum");
  if (bases_checksum(*file_) != checksum_) {
    throw FormatError(message(path, ": the checksum does not fit: the file is damaged"));
  }
}

BasisData CalibratedBases::basis(int layer, bool values, int group, int dim,
                                 const ProjectorSpec& projector) const {
  const int64_t width = int64_t{group_} * dim;
  const std::string name = message("blk.", layer, values ? ".values." : ".keys.", group);
  const std::string path = printable(file_->path().string(), 1024);
  if (width > kMostValues) {
    throw ConfigError(
        message(path, ": expected groups of at most ", kMostValues, " values, found ", width));
  }
  const TensorInfo& rows = tensor_of(*file_, name, width, 0);
  const TensorInfo& energies = tensor_of(*file_, name + ".energy", rows.rows(), 1);
  const std::vector<float> energy = finite_values(energies, path);
  check_energy(energy, energies.name, path);
  const int rank = rank_of(energy, static_cast<int>(width), projector);
  if (rank > rows.rows()) {
    throw ConfigError(message(path, ": ", name, ": expected at most its ", rows.rows(),
                              " components, found a rank of ", rank));
  }
  const std::vector<float> components = finite_values(rows, path);
  check_lengths(components.data(), rank, width, name, path);
  BasisData out;
  out.dim = out.block = static_cast<int>(width);
  out.width = out.block_width = rank;
  out.lift.resize(static_cast<size_t>(width) * static_cast<size_t>(rank));
  for (int64_t j = 0; j < width; ++j) {
    for (int c = 0; c < rank; ++c) {
      out.lift[static_cast<size_t>(j * rank + c)] = components[static_cast<size_t>(c * width + j)];
    }
  }
  return out;
}

Klt CalibratedBases::klt(int layer, int head, int dim) const {
  const std::string name = message("blk.", layer, ".klt.", head);
  const std::string path = printable(file_->path().string(), 1024);
  const TensorInfo& tensor = tensor_of(*file_, name, dim, dim);
  const std::vector<float> rows = finite_values(tensor, path);
  const std::vector<float> energy =
      finite_values(tensor_of(*file_, name + ".energy", dim, 1), path);
  const std::vector<float> metric =
      finite_values(tensor_of(*file_, name + ".metric", dim, 1), path);
  check_lengths(rows.data(), dim, dim, name, path);
  check_energy(energy, name + ".energy", path);
  if (!std::ranges::all_of(metric, [](float x) { return x >= kLeastMetric && x <= kMostMetric; })) {
    throw FormatError(message(path, ": ", name, ".metric: expected mean squares from ",
                              kLeastMetric, " to ", kMostMetric));
  }
  return klt_basis(rows, energy, metric);
}

}  // namespace kve
