// Rows of a cache page as f32, as attention sees them: decoded, lifted out of their basis and
// turned to their position (rebuild.cpp).
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// What a row has more of: values or coefficients, which may be those of several heads.
static inline int row_numbers(const SideArgs& side) {
  return side.n_channels > side.width ? side.n_channels : side.width;
}
static inline int row_numbers(const AttendChunk& chunk) {
  const int keys = row_numbers(chunk.k);
  const int values = row_numbers(chunk.v);
  return keys > values ? keys : values;
}

// Scratch bytes for rows of at most `width` values and coefficients.
size_t lift_scratch(int width);

// Rows [first, first + n) of a page, n <= kAttendTile, to dst [n, side.width]. `position` is that
// of the page's first row. `rounded`: rows that are going to be rounded to bf16 may be lifted in
// it, where the instruction set has such products.
void rebuild_rows(const SideArgs& side, const PageView& page, int32_t first, int32_t n,
                  int32_t position, bool rounded, float* dst, std::byte* scratch);

}  // namespace kve::KVE_ISA
