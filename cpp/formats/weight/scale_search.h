// How the encoders of the K types choose scales, minima and codes: for the least squared error of
// the decoded block, plain and unweighted. The search alternates between rounding to codes and a
// least-squares line through them, from several starts, then repeats that with the scales as the
// block can store them.
#pragma once

#include <stdint.h>

namespace kve {

constexpr int kSuperBlock = 256;

// value = d * scales[i / 32] * codes[i] - dmin * mins[i / 32]
struct AffineBlock {
  float d;        // a binary16 number, not negative
  float dmin;     // a binary16 number; negative only when every value of the block is positive
  int scales[8];  // 0..63
  int mins[8];    // 0..63
  uint8_t codes[kSuperBlock];
};

// Codes in 0..max_code. `x` has 256 values.
void fit_affine(const float* x, int max_code, AffineBlock* out);

// value = d * scales[i / 16] * codes[i]
struct SymmetricBlock {
  float d;         // a binary16 number
  int scales[16];  // -128..127
  int8_t codes[kSuperBlock];
};

// Codes in -zero..zero-1. `x` has 256 values.
void fit_symmetric(const float* x, int zero, SymmetricBlock* out);

}  // namespace kve
