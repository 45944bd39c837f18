// Bases as caches have them.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "base/half.h"
#include "formats/cache_codecs.h"
#include "kernels/basis_view.h"
#include "kernels/kernel_testing.h"

namespace kve::cuda {

// An orthonormal basis, in weights where it is int8 or has some, as caches have them.
struct OwnBasis {
  struct Shape {
    int dim = 64;
    int block = 64;
    int block_width = 64;
    bool int8 = false;
    float weight = 1;  // of channels, on average
  };
  BasisView view;
  std::vector<uint16_t> lift;
  std::vector<int8_t> lift8;
  std::vector<float> scale;
  std::vector<float> row;
  std::vector<double> frequencies;
  std::vector<uint8_t> strips;

  OwnBasis(const Shape& shape, test::Random* random) {
    view.dim = shape.dim;
    view.block = shape.block;
    view.block_width = shape.block_width;
    view.width = shape.dim / shape.block * shape.block_width;
    const auto n = static_cast<size_t>(shape.block);
    const auto width = static_cast<size_t>(shape.block_width);
    // Gram-Schmidt of random columns.
    std::vector<std::vector<double>> columns;
    while (columns.size() < width) {
      std::vector<double> next;
      for (size_t j = 0; j < n; ++j) next.push_back(double{random->normal()});
      for (const auto& other : columns) {
        double dot = 0;
        for (size_t j = 0; j < n; ++j) dot += other[j] * next[j];
        for (size_t j = 0; j < n; ++j) next[j] -= dot * other[j];
      }
      double square = 0;
      for (const double value : next) square += value * value;
      for (double& value : next) value /= std::sqrt(square);
      columns.push_back(next);
    }
    for (size_t j = 0; j < n; ++j) {
      row.push_back(shape.weight * (1 + static_cast<float>(j % 5)));
      std::vector<double> values;
      for (size_t c = 0; c < width; ++c) {
        values.push_back(columns[c][j] / std::sqrt(double{row.back()}));
      }
      double most = 0;
      for (const double value : values) most = std::max(most, std::abs(value));
      scale.push_back(static_cast<float>(most / 127));
      for (const double value : values) {
        lift.push_back(float_to_half(static_cast<float>(value)));
        lift8.push_back(static_cast<int8_t>(std::lround(value / double{scale.back()})));
      }
    }
    view.row = row.data();
    view.projected_twice = true;
    if (shape.int8) {
      view.lift8 = lift8.data();
      view.lift8_scale = scale.data();
    } else {
      view.lift = lift.data();
    }
  }
  OwnBasis(const OwnBasis&) = delete;
  OwnBasis& operator=(const OwnBasis&) = delete;

  void anchor(int n_pairs, bool interleaved) {
    for (int i = 0; i < n_pairs; ++i)
      frequencies.push_back(std::pow(10000.0, -i / double(n_pairs)));
    view.anchor = kPageTokens;
    view.frequencies = frequencies.data();
    view.n_pairs = n_pairs;
    view.interleaved = interleaved;
  }
  void mix_bits(std::vector<uint8_t> bits) {
    strips = std::move(bits);
    view.strip_bits = strips.data();
  }
};

}  // namespace kve::cuda
