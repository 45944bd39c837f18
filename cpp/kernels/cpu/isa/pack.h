// Inputs quantized for products of many inputs (matmat.cpp).
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// Dot products of one plane are below 2^22 in magnitude. Begun at the bits of 1.5 * 2^23, whose
// last bit counts 1, their sum is the bits of the float kFloatStart + dot. With one rounding, sum *
// scale - kFloatStart * scale is then the product dot * scale, in one instruction instead of two
// that convert and multiply: where all vector arithmetic shares its ports with the dot products,
// these are 73 % of it instead of 67 %. Needs a fused multiply-add.
#if defined(__FMA__)
constexpr bool kFloatDots = true;
#else
constexpr bool kFloatDots = false;
#endif
constexpr int32_t kFloatStartBits = 0x4b400000;
constexpr float kFloatStart = 12582912.0f;

namespace {

// kMatTokens inputs. An entry is 32 columns of them in one plane: first all columns in their order,
// then those that some input has a second plane of, in which the other inputs are zero.
struct Pack {
  int32_t* n_entries;  // [1]
  int32_t* groups;     // [entries]: columns 32 * group ...
  int32_t* codes;      // [entries][kMatTokens][8], 4 codes each
  float* scales;       // [entries][kMatTokens]
  int32_t* start16;    // [entries][2][kMatTokens]: what sums begin with, to take back kDotBias
  int32_t* start32;    // [entries][kMatTokens]
  float* sums16;       // [entries][2][kMatTokens]: scale times the sum of codes
  float* sums32;       // [entries][kMatTokens]

  Pack(std::byte* data, int64_t cols) {
    const int64_t most = 2 * (cols / 32);
    Carver carver(data);
    n_entries = carver.take<int32_t>(1);
    groups = carver.take<int32_t>(most);
    codes = carver.take<int32_t>(most * 8 * kMatTokens);
    scales = carver.take<float>(most * kMatTokens);
    start16 = carver.take<int32_t>(most * 2 * kMatTokens);
    start32 = carver.take<int32_t>(most * kMatTokens);
    sums16 = carver.take<float>(most * 2 * kMatTokens);
    sums32 = carver.take<float>(most * kMatTokens);
    size = carver.size();
  }
  size_t size;
};

}  // namespace

}  // namespace kve::KVE_ISA
