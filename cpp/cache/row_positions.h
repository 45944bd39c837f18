// Which tokens the rows of a side are.
#pragma once

#include <cstdint>

namespace kve {

// Row r holds the token at position first + r or, where tokens were dropped, at rows[r].
struct RowPositions {
  RowPositions(int first_) : first(first_) {}  // NOLINT(google-explicit-constructor)
  RowPositions(const int32_t* rows_)
      : first(0), rows(rows_) {}  // NOLINT(google-explicit-constructor)

  int64_t of(int64_t row) const { return rows != nullptr ? rows[row] : first + row; }
  // The position that a page of `size` tokens, of which `row` is the first, is turned back to. With
  // gaps that is where a page without them would begin: at multiples of `size` plus `offset`.
  int64_t anchor(int64_t row, int size, int offset) const {
    return rows != nullptr ? offset + (rows[row] - offset) / size * size : first + row;
  }

  int first;
  const int32_t* rows = nullptr;
};

}  // namespace kve
