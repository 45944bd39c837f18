// Pages of strips code by code: their parameters in f32, and raw levels that these belong to.
#pragma once

#include "kernels/cpu/isa/strip_cells.h"

namespace kve::KVE_ISA {

// Parameters of a page in f32: of channels, [token groups][padded], or of tokens, [channel
// groups][kAttendTile]. What a level is less than its raw byte is part of the zeros.
struct PageParams {
  const StripSide& side;
  int64_t padded;  // width rounded up to 16
  float* scale;
  float* zero;
  float* factor;  // of channels or tokens
  alignas(64) int8_t table[16];
};
static inline int64_t param_stride(const PageParams& params) {
  return params.side.per_channel ? params.padded : kAttendTile;
}
static inline int64_t param_groups(const PageParams& params) {
  const StripSide& side = params.side;
  return side.per_channel ? kAttendTile / side.group : (side.width + side.group - 1) / side.group;
}

// `scratch`: strip_tile_floats() of them.
PageParams load_page_params(const StripSide& side, const PageView& page, float* scratch);

// Codes, or entries of the table, as bytes without sign.
template <int kBits, bool kTable>
__attribute__((always_inline)) static inline void raw_cell(const std::byte* strip, int cell,
                                                           const int8_t* table, Cell& w) {
  if constexpr (kBits == 8) {
#pragma GCC unroll 4
    for (int i = 0; i < kCellVectors; ++i) {
      w[i] = load_i32(strip + kCellCodes * cell + 4 * kLanes * i);
    }
  } else {
    unpack_cell<kBits>(strip, cell, w);
  }
  if constexpr (kTable) {
#pragma GCC unroll 4
    for (int i = 0; i < kCellVectors; ++i) w[i] = lookup_bytes(table, w[i]);
  }
}

}  // namespace kve::KVE_ISA
