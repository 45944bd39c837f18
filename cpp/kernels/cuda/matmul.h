// y = x W^T with weights in device memory. Quantized weights lie there in a layout of their own
// (packed_weight.h), with the values of the file, bit for bit; floats as in the file.
//
// With quantized weights inputs are rounded to int8 codes with a scale per 32 values, one or two
// planes of them (Precision), as on the CPU; sums of products of codes are exact. At most kFewRows
// rows are multiplied by dot products, one warp to a row of weights; more by tensor cores.
#pragma once

#include <cstddef>

#include "base/span.h"
#include "kernels/backend.h"

namespace kve::cuda {

// What a weight becomes in device memory: of the types that kernels do not know, binary16.
WeightType packed_type(WeightType type);
// Bytes of a weight in device memory, and what is to be there, in host memory. Throws
// UnsupportedError where binary16 does not hold a value of a type that kernels do not know.
size_t packed_bytes(const Weight& weight);
void pack_weight(const Weight& weight, std::byte* packed);

// A weight in device memory, as pack_weight() writes it; 16-byte aligned.
struct DeviceWeight {
  WeightType type = WeightType::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;
  int64_t row_bytes = 0;  // of floats, from one row to the next; 0: they follow each other

  bool is_float() const {
    return type == WeightType::f32 || type == WeightType::f16 || type == WeightType::bf16;
  }
};

// Inputs as codes, in device memory: made once for several products. A value is
// scale * (254 * code + remainder) with two planes, else scale * code.
struct CodedInputs {
  int64_t rows = 0;
  int64_t cols = 0;
  int8_t* codes = nullptr;       // [rows, cols]
  int8_t* remainders = nullptr;  // [rows, cols]; null: one plane
  float* scales = nullptr;       // [rows, cols / 32]
  float* sums = nullptr;         // [rows, cols / 32], of the rounded values
};

// Scratch memory of coded inputs, on the device; 16-byte aligned.
size_t coded_inputs_bytes(int64_t rows, int64_t cols);
// `x`: 16-byte aligned rows.
CodedInputs code_inputs(ConstMat x, Precision precision, std::byte* memory);

// y = x W^T (+ bias [weight.rows], or null); of quantized weights.
void matmul(const CodedInputs& x, const DeviceWeight& weight, const float* bias, Mat y);
// The same in binary32 throughout, of any weights.
void matmul(ConstMat x, const DeviceWeight& weight, const float* bias, Mat y);

}  // namespace kve::cuda
