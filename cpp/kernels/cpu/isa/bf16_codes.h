// Pages of codes as tiles of bf16, without rows of floats in between.
#pragma once

#include "kernels/cpu/isa/word_tiles.h"

#if defined(KVE_BF16_TILES)

namespace kve::KVE_ISA {

// The coefficients of a page of keys as the keys of `tile`, or those of a page of values as its
// values. False where the page has parameters that are no numbers, or others than this way knows;
// what is written then means nothing. `scratch`: strip_tile_floats() of them. `rest`, or null, is
// what keys have beyond the tile's, in the same places.
bool round_key_codes(const StripSide& side, const PageView& page, float* scratch, WordTile* tile,
                     int32_t* rest);
bool round_value_codes(const StripSide& side, const PageView& page, float* scratch, WordTile* tile);

}  // namespace kve::KVE_ISA

#endif
