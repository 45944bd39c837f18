// How attention cuts a head's rows into tiles, and how many queries it takes at a time.
#pragma once

#include <cstdint>

#include "kernels/cpu/kernels.h"

namespace kve {

// Tiles end at fixed positions, where pages do. So many rows of the tile in which row `row` of a
// head lies come before it; HeadView has first_pos and page_offset.
constexpr int32_t rows_before_in_tile(int32_t first_pos, int32_t page_offset, int32_t row) {
  const int32_t at = (first_pos - page_offset + row) % kAttendTile;
  return at < 0 ? at + kAttendTile : at;
}

// Tiles of a head, at most: the first and the last may be short.
constexpr int64_t most_tiles(int64_t n_rows) { return n_rows / kAttendTile + 2; }

// Query vectors (n_tokens * n_group) of one call of attend() with tiles of rows, at most. The more,
// the less often rows are decoded and lifted.
inline constexpr int kMaxTileVectors = 768;

// The same for heads of so many numbers: what one tile touches of all queries stays in the second
// cache, at 6 bytes for each number of theirs.
constexpr int most_tile_vectors(int key_dim, int value_dim) {
  constexpr int kNumbers = kMaxTileVectors * 128;
  constexpr int kLeast = kMaxTileVectors / 2;
  const int most = kNumbers / (key_dim + value_dim);
  return most < kLeast ? kLeast : (most < kMaxTileVectors ? most : kMaxTileVectors);
}

}  // namespace kve
