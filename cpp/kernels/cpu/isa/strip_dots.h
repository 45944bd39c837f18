// Integer products of int8 vectors and the codes of strips: the inner loops of attention over
// compressed pages.
#pragma once

#include "kernels/cpu/isa/strip_cells.h"
#include "kernels/cpu/strip_args.h"

namespace kve::KVE_ISA {

struct StripDots {
  int32_t bits;
  const uint8_t* strip_bits;  // keys: of each strip, from the first one read on; or null
  const int8_t* table;        // [16] bytes that stand for the codes, with dot4's bias; or null
  const int8_t* x;            // [n_vectors][x_stride]; for keys, x[0] belongs to the first strip
  int64_t x_stride;
  int64_t n_vectors;  // 1 to 4, or 6; at most kStripVectors
  int32_t* dots;      // written
};

// Vectors that share one reading of the codes.
constexpr int kStripVectors = kLanes == 16 ? 6 : kRowVectors;

// What is prefetched while strips are read: as many bytes of codes that are read soon, into the
// first cache, and of such that are read later, into the second, which can await more lines. Both
// move on; null: nothing.
struct CodesAhead {
  const std::byte* soon;
  const std::byte* later;
};

// dots[v][16 c + l], 64 of each vector: n_strips strips of a page of keys from `strips` on, cells
// [first_cell, first_cell + n_cells), which are 1, 2 or 4 of them.
void dot_keys(const StripDots& job, const std::byte* strips, int64_t n_strips, int first_cell,
              int n_cells, CodesAhead* ahead);
// dots[b][v][l], kStripVectors x 16 of each block: blocks [0, n_blocks) of 16 channels from
// `strips` on, strips [first, end) of the 4 of each block; x[0] belongs to strip 0.
void dot_values(const StripDots& job, const std::byte* strips, int64_t n_blocks, int first, int end,
                CodesAhead* ahead);

}  // namespace kve::KVE_ISA
