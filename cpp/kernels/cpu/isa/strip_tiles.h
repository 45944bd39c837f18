// Pages of strips as the elements that products with many queries read (attend_tiles.cpp): one f32
// each, or two bf16 numbers that are neighbours where the product adds up.
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// Scratch floats for pages of at most so many coefficients in a row.
int64_t strip_tile_floats(int width);

// The entries of a side's table, which may have 16, as bytes with a sign and a common unit, which
// is returned.
float round_entries(const StripSide& side, int8_t* table);

// Coefficients of a page of keys, elements[c / per_element][kAttendTile]: lanes are tokens.
void key_elements(const StripSide& side, const PageView& page, bool rounded, float* elements,
                  float* scratch);
// Of a page of values, elements[t / per_element][stride]: lanes are channels. Rows past the page's
// are zero, or the same in all tokens.
void value_elements(const StripSide& side, const PageView& page, bool rounded, float* elements,
                    int64_t stride, float* scratch);

}  // namespace kve::KVE_ISA
