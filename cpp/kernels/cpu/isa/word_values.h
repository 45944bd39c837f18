// Coded values as tiles of int16, where their levels are whole numbers of a common unit and a token
// has one scale: its codes become words as they are, without rounding.
#pragma once

#include "kernels/cpu/isa/word_tiles.h"

#if defined(KVE_WORD_TILES)

namespace kve::KVE_ISA {

// The values of a page to `tile`. False where this way does not serve; nothing is written then.
// `scratch`: strip_tile_floats() of them.
bool read_word_values(const StripSide& side, const PageView& page, float* scratch, WordTile* tile);

}  // namespace kve::KVE_ISA

#endif
