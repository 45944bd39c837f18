// One quantized input of matvec: views into a piece of memory of bytes(cols) bytes.
#pragma once

#include <string.h>

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

struct VectorInput {
  int8_t* codes;  // [cols], then zeros up to a multiple of 128
  float* scales;  // per 32
  float* sums;    // per 16: the sum of the codes times their scale

  static int64_t padded(int64_t cols) { return round_up(cols, 128); }
  static int64_t bytes(int64_t cols) {
    const int64_t n = padded(cols);
    return n + round_up(n / 32 * 4, 64) + round_up(n / 16 * 4, 64);
  }
  VectorInput(std::byte* data, int64_t cols) {
    Carver carver{data};
    codes = carver.take<int8_t>(padded(cols));
    scales = carver.take<float>(padded(cols) / 32);
    sums = carver.take<float>(padded(cols) / 16);
  }
  // Derives the rest from `codes` and `scales`.
  void complete(int64_t cols) const {
    for (int64_t i = cols; i < padded(cols); ++i) codes[i] = 0;
    for (int64_t g = cols / 32; g < padded(cols) / 32; ++g) scales[g] = 0;
    for (int64_t h = 0; h < padded(cols) / 16; ++h) {
      int32_t total = 0;
      for (int64_t i = 16 * h; i < 16 * h + 16; ++i) total += codes[i];
      sums[h] = scales[h / 2] * static_cast<float>(total);
    }
  }
};

}  // namespace kve::KVE_ISA
