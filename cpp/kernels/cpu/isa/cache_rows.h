// Rows of a cache page as f32, as attention sees them: decoded, lifted out of their basis and
// turned to their position (rebuild.cpp).
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// Scratch bytes for rows of `width` values.
size_t lift_scratch(int width);

// Rows [first, first + n) of a page, n <= kAttendTile, to dst [n, side.width]. `position` is that
// of the page's first row. `rounded`: rows that are going to be rounded to bf16 may be lifted in
// it, where the instruction set has such products.
void rebuild_rows(const SideArgs& side, const PageView& page, int32_t first, int32_t n,
                  int32_t position, bool rounded, float* dst, std::byte* scratch);

}  // namespace kve::KVE_ISA
