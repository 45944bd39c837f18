// Inputs quantized for products of a few of them with interleaved weights (matvec_interleaved.cpp).
#pragma once

#include "kernels/cpu/isa/dots.h"

namespace kve::KVE_ISA {
namespace {

// 32 quantized values of an input in one plane, with what their integer dot products start with.
struct InputGroup {
  int8_t codes[32];
  float scale;
  float sum;            // of the codes, times their scale; of both planes at the place of the first
  int32_t start8;       // kDotsBegin - 8 times the sum of the codes
  int32_t start16;      // ... - 16 times
  int32_t bias;         // ... - kDotBias times
  int32_t halves32[2];  // ... - 32 times, of 16 codes
  int32_t has_second;   // of a first plane: whether there is a second

  // Derives sums and starts from codes and scale.
  void complete() {
    int32_t totals[2];
    code_sums(codes, totals);
    const int32_t total = totals[0] + totals[1];
    sum = scale * static_cast<float>(total);
    start8 = kDotsBegin - 8 * total;
    start16 = kDotsBegin - 16 * total;
    bias = kDotsBegin - kDotBias * total;
    halves32[0] = kDotsBegin - 32 * totals[0];
    halves32[1] = kDotsBegin - 32 * totals[1];
  }

  template <class Codes, int kParts>
  int32_t start(int part) const {
    if constexpr (!Codes::kSmall) {
      static_assert(kParts == 1);
      return bias;
    } else if constexpr (Codes::kZero == 8) {
      return start8;
    } else if constexpr (Codes::kZero == 16) {
      return start16;
    } else if constexpr (Codes::kZero == 32) {
      static_assert(kParts == 2);
      return halves32[part];
    } else {
      static_assert(Codes::kZero == 0);
      return kDotsBegin;
    }
  }
};
static_assert(sizeof(InputGroup) == 64);

struct SecondPlane {
  int32_t group;
  int32_t token;
};

// n_tokens inputs of n_groups groups.
struct TileInput {
  int32_t* n_seconds;    // [1]
  SecondPlane* seconds;  // [n_seconds]: by group, then token
  InputGroup* first;     // [n_groups][n_tokens]
  InputGroup* second;    // the same, of those that `seconds` lists

  TileInput(std::byte* data, int64_t n_groups, int64_t n_tokens) {
    Carver carver(data);
    n_seconds = carver.take<int32_t>(1);
    seconds = carver.take<SecondPlane>(n_groups * n_tokens + 1);  // written before it counts
    first = carver.take<InputGroup>(n_groups * n_tokens);
    second = carver.take<InputGroup>(n_groups * n_tokens);
    size = carver.size();
  }
  size_t size;
};

}  // namespace
}  // namespace kve::KVE_ISA
