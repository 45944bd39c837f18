// Coded pages as tiles of attention with many queries: codes become elements (strip_tiles.h), keys
// are lifted out of their basis and turned to their position. Sums of values stay in theirs.
#pragma once

#include "kernels/cpu/isa/cache_rows.h"
#include "kernels/cpu/isa/strip_tiles.h"

namespace kve::KVE_ISA {

// Scratch memory.
struct CodedTiles {
  int64_t stride;  // values between rows of the lift
  float* params;
  float* coefficients;  // elements [width / per_element][kAttendTile]
  float* lifted;        // [width][kAttendTile]
  float* lift;          // elements [block][stride], of the basis of that number
  int32_t basis;        // -1: none
};
CodedTiles carve_coded_tiles(int key_dim, int value_dim, std::byte* memory);
size_t coded_tiles_bytes(int key_dim, int value_dim);

// The keys of a page, as elements keys[d / per_element][kAttendTile]. False where this way does not
// serve; nothing is written then.
bool read_coded_keys(CodedTiles* tiles, const SideArgs& side, const PageView& page, PagePlace place,
                     bool rounded, float* keys);

}  // namespace kve::KVE_ISA
