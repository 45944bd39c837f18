// Small dense linear algebra in float64: what the projectors (cache/project/) need and no more.
// Single-threaded and deterministic. Rows that hold a value that is not finite are left out of
// sums, so that results are finite whatever a model computes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/span.h"

namespace kve {

// Singular values below this share of the largest are noise: squaring a matrix loses half of the
// digits.
inline constexpr double kRankTolerance = 1e-6;

// Row-major [rows, cols], zeros at first.
struct Matrix {
  int rows = 0;
  int cols = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(int rows_, int cols_)
      : rows(rows_), cols(cols_), values(static_cast<size_t>(rows_) * static_cast<size_t>(cols_)) {}
  double* row(int r) { return values.data() + static_cast<size_t>(r) * static_cast<size_t>(cols); }
  const double* row(int r) const {
    return values.data() + static_cast<size_t>(r) * static_cast<size_t>(cols);
  }
};

// Sums up the products of the columns of rows, X^T X, over any number of calls.
class Gram {
 public:
  explicit Gram(int width);

  // rows: [n, width]. Adds (row - offset) (row - offset)^T; offset: [width], empty: zeros.
  void add(ConstMat rows, std::span<const double> offset = {});

  int width() const { return upper_.rows; }
  int64_t count() const { return count_; }  // rows that were added
  // For who adds up rows itself: [width, width], of which only what is not below the diagonal
  // counts, and the rows that it has added.
  double* sums() { return upper_.values.data(); }
  void count_rows(int64_t n) { count_ += n; }
  Matrix matrix() const;  // symmetric [width, width]

 private:
  Matrix upper_;
  int64_t count_ = 0;
};

// The mean of the finite rows, zeros where there are none: [cols].
std::vector<double> finite_mean(ConstMat rows);

struct Eigen {
  std::vector<double> values;  // [n], falling
  Matrix vectors;              // [n, n]: row c is the unit vector of values[c]
};
// Of a symmetric, finite matrix [n, n]: Householder's tridiagonal form and implicit QL steps.
// The entry of largest magnitude of every vector is positive.
Eigen symmetric_eigen(Matrix a);

struct RightSvd {
  std::vector<double> values;  // [min(rows, cols)] singular values, falling; noise becomes 0
  Matrix vectors;              // [min(rows, cols), cols]: right vectors; zeros where the value is 0
};
// The left vectors of a singular value decomposition follow from these: u_c = X v_c / value_c.
RightSvd right_svd(ConstMat rows);
RightSvd right_svd(const Gram& gram);
RightSvd right_svd(Matrix products);  // X^T X

// Orthogonal [n, n], uniformly distributed (Haar); a seed gives one matrix.
Matrix orthogonal_matrix(int n, uint64_t seed);

// The largest power of two that divides n > 0.
int hadamard_block(int n);
// The Walsh-Hadamard matrix in Sylvester's order divided by sqrt(n), n a power of two.
Matrix hadamard_matrix(int n);

}  // namespace kve
