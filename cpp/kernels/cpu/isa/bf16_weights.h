// Weights of any type rounded to bf16, as the tile unit multiplies them (bf16_products.cpp).
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// A step is 32 columns: pairs of bf16 numbers of columns p and 16 + p. Of 16 inputs, or of 16 rows
// of weights, it fills a register.
constexpr int64_t kStepNumbers = 16 * 32;

// Bytes of scratch memory for so many columns.
size_t round_weights_scratch(int64_t cols);

// Some steps of 32 rows of a chunk's weights from first_row on, n_rows of which are there (others
// become zeros): dst [2][steps][16 pairs][16 rows][2]. first_step is a multiple of kFirstSteps.
constexpr int64_t kFirstSteps = 8;
void round_weights(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows, int64_t first_step,
                   int64_t n_steps, std::byte* scratch, uint16_t* dst);

}  // namespace kve::KVE_ISA
