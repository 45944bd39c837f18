// Matrix products: what a Backend multiplies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/span.h"
#include "formats/weight_formats.h"

namespace kve {

// A weight matrix [rows, cols] as it lies in the file: row r is at data + r * row_bytes.
struct Weight {
  WeightType type = WeightType::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  size_t row_bytes = 0;
  const std::byte* data = nullptr;
  const std::byte* repacked = nullptr;  // the backend's own layout of the same values, or null

  explicit operator bool() const { return data != nullptr; }
};

// How activations enter a matrix product with quantized weights.
enum class Precision : uint8_t {
  exact,  // f32 activations, f32 weights: the reference
  fine,   // two int8 planes per value (about 15 bits), scale per 32
  mixed,  // the same; the second plane only of groups of 32 that int8 hurts, where that is cheaper
  fast,   // int8, scale per 32; the second plane of groups that int8 hurts most, where cheap
};

// One of several products that share their input: y = x W^T (+ bias per column).
struct Product {
  const Weight* weight = nullptr;
  Mat y;                        // [n, weight->rows]
  const float* bias = nullptr;  // [weight->rows] or null
};

enum class Activation : uint8_t { silu, gelu_tanh, gelu_erf, relu };

// y = (activation(x gate^T) * (x up^T)) down^T, each product with its bias.
struct GatedBlock {
  Activation activation = Activation::silu;
  Product gate;
  Product up;
  Product down;  // down.weight->cols == gate.weight->rows
};

}  // namespace kve
