// A basis as kernels read it: plain data, so that per-ISA objects may include it.
#pragma once

#include <cstdint>

namespace kve {

// Rows of `dim` values are stored as `width` coefficients. The map is block-diagonal: n_blocks =
// dim / block equal blocks of `block` values and block_width coefficients (one block: dense).
//   value[b * block + j] = sum over c of lift[j][c] * coefficient[b * block_width + c]
//   coefficient[b * block_width + c] = sum over j of column[c] * lift[j][c] * row[j] * value[...]
// so that scores need no values: query . value = (lift^T query) . coefficient.
struct BasisView {
  int32_t dim = 0;
  int32_t width = 0;
  int32_t block = 0;
  int32_t block_width = 0;
  // One of the two: binary16, or int8 times a factor per row.
  const uint16_t* lift = nullptr;      // [block][block_width]
  const int8_t* lift8 = nullptr;       // [block][block_width]
  const float* lift8_scale = nullptr;  // [block]
  const float* row = nullptr;          // [block], null: ones
  const float* column = nullptr;       // [block_width], null: ones
  // What coefficients miss of a row is projected as well and added to them: a rounded lift's
  // transpose is not quite its inverse, and this squares what it is off by.
  bool projected_twice = false;

  // Bits of every strip of a page (formats/cache/strips.h), null: as the codec says.
  const uint8_t* strip_bits = nullptr;

  // Keys are rotated back (rotary embeddings undone) before they are written. 0: not at all; 1: to
  // position 0, so as they were before the embedding; kPageTokens: by the position of the page's
  // first row, so that the rows of a page keep their rotation against each other.
  int32_t anchor = 0;
  const double* frequencies = nullptr;  // [n_pairs] radians per position, where anchor > 0
  int32_t n_pairs = 0;
  bool interleaved = false;  // pairs (2i, 2i + 1), else (i, i + n_pairs)
};

}  // namespace kve
