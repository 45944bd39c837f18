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

// Where a page lies: the cache row of its first row, and the position of cache row 0.
struct PagePlace {
  int32_t row;
  int32_t first_pos;
};

// The angles that a row was turned back by: a row alone, or the first of a page for all of them.
// Positions between those of the table, of pages that have lost rows, are rounded down.
static inline const float* angles_at(const SideArgs& side, const BasisView& basis,
                                     PagePlace place) {
  const int32_t position =
      side.positions != nullptr ? side.positions[place.row] : place.first_pos + place.row;
  const int64_t index = (position - side.angle_offset) / side.angle_step;
  return side.angles + index * 2 * basis.n_pairs;
}

// Rows [first, first + n) of a page, n <= kAttendTile, to dst [n, side.width]. `rounded`: rows that
// are going to be rounded to bf16 may be lifted in it, where the instruction set has such products.
void rebuild_rows(const SideArgs& side, const PageView& page, int32_t first, int32_t n,
                  PagePlace place, bool rounded, float* dst, std::byte* scratch);

}  // namespace kve::KVE_ISA
