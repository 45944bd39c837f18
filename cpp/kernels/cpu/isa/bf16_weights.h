// Weights of any type rounded to bf16, as the tile unit multiplies them (bf16_products.cpp). That
// can be done unit by unit, between products of weights that were rounded before: the tile unit
// leaves half of the vector arithmetic idle.
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// A step is 32 columns: pairs of bf16 numbers of columns p and 16 + p. Of 16 inputs, or of 16 rows
// of weights, it fills a register.
constexpr int64_t kStepNumbers = 16 * 32;
// Rows that are rounded together, and what the first of their steps is a multiple of.
constexpr int64_t kRoundedRows = 32;
constexpr int64_t kFirstSteps = 8;

// Some columns of a slice of rows.
struct SlicePart {
  const MatmulChunk* chunk;
  int64_t first_row;
  int64_t n_rows;  // that are there; the others become zeros
  int64_t first_step;
  int64_t n_steps;
};

struct Rounding {
  void (*round)(Rounding& rounding, int64_t unit);  // units in their order
  const std::byte* tiles[2];                        // null for rows that are not there
  int64_t n_groups;                                 // of columns, of the tiles
  int64_t first_step;
  uint16_t* dst;  // [2][steps][16 pairs][16 rows][2]
  int64_t n_steps;
  int64_t n_units;
  // Of the group that is being rounded.
  std::byte* scaling;
  const std::byte* codes;
  int part;  // of what the codes share lines with
  uint16_t* to;
};

// Bytes of scratch memory for so many columns.
size_t rounding_scratch(int64_t cols);
// What is left to be done to round a part. Weights in the file's layout are rounded at once, and
// nothing is left.
Rounding start_rounding(const SlicePart& part, std::byte* scratch, uint16_t* dst);

}  // namespace kve::KVE_ISA
