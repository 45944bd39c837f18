// How many queries attention over tiles of rows takes at a time.
#pragma once

namespace kve {

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
