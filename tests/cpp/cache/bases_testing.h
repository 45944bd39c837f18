// Files of calibrated bases for tests, good ones and others.
#pragma once

#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "base/temporary_folder.h"
#include "cache/calibrated_bases.h"
#include "cache/kv_cache.h"
#include "cache/linalg.h"
#include "gguf/gguf_writer.h"

namespace kve::test {

// What a file holds; tests change it before it is written.
struct BasesContent {
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  std::string architecture = "kvengine-bases";
  uint32_t version = 1;
  uint64_t model = 7;
  uint32_t layers = 0;
  uint32_t group = 1;
  std::vector<Tensor> tensors;
  uint64_t checksum_change = 0;

  // The components of a group.
  const std::vector<float>& rows(size_t layer, bool values, int of_group) const {
    const std::string name = message("blk.", layer, values ? ".values." : ".keys.", of_group);
    for (const Tensor& each : tensors) {
      if (each.name == name) return each.values;
    }
    throw Error("no tensor " + name);
  }
};

// Rows of an orthogonal matrix: a Walsh-Hadamard matrix with random signs of its columns, which
// binary16 holds exactly, where the size is a power of four; else a random one.
inline std::vector<float> orthogonal_rows(int size, uint64_t seed) {
  const bool exact = size == 4 || size == 16 || size == 64 || size == 256;
  Matrix matrix = exact ? hadamard_matrix(size) : orthogonal_matrix(size, seed);
  Random random(seed);
  for (int j = 0; j < size && exact; ++j) {
    const double sign = random.bits() % 2 == 0 ? 1 : -1;
    for (int c = 0; c < size; ++c) matrix.row(c)[j] *= sign;
  }
  return {matrix.values.begin(), matrix.values.end()};
}

// Bases of all components for heads in groups.
inline BasesContent bases_of(const std::vector<LayerShape>& shapes, int group) {
  BasesContent out;
  out.layers = static_cast<uint32_t>(shapes.size());
  out.group = static_cast<uint32_t>(group);
  uint64_t seed = 1;
  for (size_t layer = 0; layer < shapes.size(); ++layer) {
    for (const bool values : {false, true}) {
      const int size = group * (values ? shapes[layer].value_dim : shapes[layer].key_dim);
      std::vector<float> energy;
      for (int c = 0; c < size; ++c) energy.push_back(static_cast<float>(size - c));
      for (int g = 0; g < shapes[layer].n_kv_heads / group; ++g) {
        const std::string name = message("blk.", layer, values ? ".values." : ".keys.", g);
        out.tensors.push_back({name, {size, size}, orthogonal_rows(size, seed++)});
        out.tensors.push_back({name + ".energy", {size}, energy});
      }
    }
  }
  return out;
}

inline void write_bases(const BasesContent& content, const std::filesystem::path& path) {
  const auto write = [&](uint64_t checksum) {
    GgufWriter writer;
    writer.set("general.architecture", content.architecture);
    writer.set("kvengine.bases.version", content.version);
    writer.set("kvengine.bases.model", content.model);
    writer.set("kvengine.bases.layers", content.layers);
    writer.set("kvengine.bases.group", content.group);
    writer.set("kvengine.bases.checksum", checksum);
    for (const BasesContent::Tensor& tensor : content.tensors) {
      writer.add_tensor(tensor.name, WeightType::f32, tensor.shape, [&](auto out) {
        std::memcpy(out.data(), tensor.values.data(), out.size());
      });
    }
    writer.write(path);
  };
  write(0);
  write(bases_checksum(*GgufFile::open(path)) + content.checksum_change);
}

}  // namespace kve::test
