// Matrix views: a pointer, a shape and a row stride, owned by somebody else.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

namespace kve {

// Row-major [rows, cols]; row r starts at data + r * stride (stride >= cols, in elements).
template <class T>
struct BasicMat {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  BasicMat() = default;
  BasicMat(T* data_, int64_t rows_, int64_t cols_) : BasicMat(data_, rows_, cols_, cols_) {}
  BasicMat(T* data_, int64_t rows_, int64_t cols_, int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  // A mutable view converts to a read-only one.
  template <class U>
    requires(std::is_same_v<T, const U>)
  BasicMat(const BasicMat<U>& other)  // NOLINT(google-explicit-constructor)
      : BasicMat(other.data, other.rows, other.cols, other.stride) {}

  T* row(int64_t r) const { return data + r * stride; }
  std::span<T> row_span(int64_t r) const { return {row(r), static_cast<size_t>(cols)}; }
  BasicMat block(int64_t first_row, int64_t n_rows) const {
    return {row(first_row), n_rows, cols, stride};
  }
  BasicMat columns(int64_t first, int64_t n) const { return {data + first, rows, n, stride}; }
};

using Mat = BasicMat<float>;
using ConstMat = BasicMat<const float>;

}  // namespace kve
