#include "cache/linalg.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/random.h"

namespace kve {
namespace {

bool all_finite(std::span<const float> row) {
  return std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); });
}

// target += factor * source. Sums run along rows like this one, which compilers vectorise without
// changing the order of additions.
void add_scaled(double factor, const double* source, int n, double* target) {
  for (int i = 0; i < n; ++i) target[i] += factor * source[i];
}

double dot(const double* a, const double* b, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

Matrix transposed(const Matrix& a) {
  Matrix out(a.cols, a.rows);
  for (int i = 0; i < a.rows; ++i) {
    for (int j = 0; j < a.cols; ++j) out.row(j)[i] = a.row(i)[j];
  }
  return out;
}

// The symmetric tridiagonal matrix T with A = Q T Q^T.
struct Tridiagonal {
  std::vector<double> diagonal;  // [n]
  std::vector<double> off;       // [n]: off[i] lies between i and i + 1, the last is 0
};

// Replaces v = a column below the diagonal by the vector of the reflection 1 - beta v v^T that
// turns it into (`off`, 0, ...). beta is 0 where there is nothing to do.
double make_reflection(double* v, int n, double* off) {
  *off = v[0];
  const double rest = dot(v + 1, v + 1, n - 1);
  if (rest < 1e-280) return 0;  // of a matrix of size 1: 0, or too small to divide by
  const double norm = std::sqrt(v[0] * v[0] + rest);
  *off = v[0] > 0 ? -norm : norm;  // the sign that avoids cancellation
  v[0] -= *off;
  return 2 / (v[0] * v[0] + rest);
}

// Reflects one column after the other; rows of `a` then hold the reflections' vectors.
Tridiagonal reduce(Matrix* a, std::vector<double>* betas) {
  const int n = a->rows;
  Tridiagonal t{std::vector<double>(static_cast<size_t>(n)), std::vector<double>(betas->size())};
  std::vector<double> product(static_cast<size_t>(n));
  for (int k = 0; k < n; ++k) {
    const auto at = static_cast<size_t>(k);
    t.diagonal[at] = a->row(k)[k];
    if (k + 1 == n) break;
    const int m = n - k - 1;
    double* v = a->row(k) + k + 1;
    const double beta = make_reflection(v, m, &t.off[at]);
    (*betas)[at] = beta;
    if (beta == 0) continue;
    // A - v w^T - w v^T with w = beta A v - (beta^2 / 2) (v^T A v) v.
    std::fill(product.begin(), product.end(), 0);
    for (int i = 0; i < m; ++i)
      add_scaled(beta * v[i], a->row(k + 1 + i) + k + 1, m, product.data());
    add_scaled(-beta / 2 * dot(product.data(), v, m), v, m, product.data());
    for (int i = 0; i < m; ++i) {
      double* row = a->row(k + 1 + i) + k + 1;
      add_scaled(-v[i], product.data(), m, row);
      add_scaled(-product[static_cast<size_t>(i)], v, m, row);
    }
  }
  return t;
}

// Q, the product of the reflections.
Matrix multiply_reflections(const Matrix& a, const std::vector<double>& betas) {
  const int n = a.rows;
  Matrix q(n, n);
  for (int i = 0; i < n; ++i) q.row(i)[i] = 1;
  std::vector<double> product(static_cast<size_t>(n));
  for (int k = n - 2; k >= 0; --k) {
    const double beta = betas[static_cast<size_t>(k)];
    if (beta == 0) continue;
    const int m = n - k - 1;
    const double* v = a.row(k) + k + 1;
    std::fill(product.begin(), product.end(), 0);
    for (int i = 0; i < m; ++i)
      add_scaled(beta * v[i], q.row(k + 1 + i) + k + 1, m, product.data());
    for (int i = 0; i < m; ++i) add_scaled(-v[i], product.data(), m, q.row(k + 1 + i) + k + 1);
  }
  return q;
}

// One implicit QL step on rows first .. last of T, with Wilkinson's shift: a rotation of the last
// pair makes a bulge, which the next rotations chase to the first pair. The rows of `vectors` are
// rotated alike.
void ql_step(int first, int last, Tridiagonal* t, Matrix* vectors) {
  double* d = t->diagonal.data();
  double* e = t->off.data();
  const double half = (d[first + 1] - d[first]) / (2 * e[first]);
  const double root = std::hypot(half, 1.0);
  const double shift = d[first] - e[first] / (half + std::copysign(root, half));
  double cosine = 1;
  double sine = 1;
  double carried = 0;  // what the previous rotation took from the next diagonal entry
  double pivot = d[last] - shift;
  for (int i = last - 1; i >= first; --i) {
    const double bulge = sine * e[i];
    const double beside = cosine * e[i];
    const double length = std::hypot(bulge, pivot);
    e[i + 1] = length;
    if (length == 0) {  // T falls apart here: what is left is smaller
      d[i + 1] -= carried;
      e[last] = 0;
      return;
    }
    sine = bulge / length;
    cosine = pivot / length;
    const double below = d[i + 1] - carried;
    const double mixed = (d[i] - below) * sine + 2 * cosine * beside;
    carried = sine * mixed;
    d[i + 1] = below + carried;
    pivot = cosine * mixed - beside;
    double* upper = vectors->row(i);
    double* lower = vectors->row(i + 1);
    for (int k = 0; k < vectors->cols; ++k) {
      const double x = upper[k];
      const double y = lower[k];
      upper[k] = cosine * x - sine * y;
      lower[k] = sine * x + cosine * y;
    }
  }
  d[first] -= carried;
  e[first] = pivot;
  e[last] = 0;
}

// Makes T diagonal. Entries beside the diagonal vanish once they are within rounding of |T|.
void diagonalise(Tridiagonal* t, Matrix* vectors) {
  constexpr int kMaxSteps = 200;  // two are usual
  const int n = static_cast<int>(t->diagonal.size());
  double norm = 0;
  for (size_t i = 0; i < t->diagonal.size(); ++i) {
    norm = std::max({norm, std::abs(t->diagonal[i]), std::abs(t->off[i])});
  }
  const double negligible = norm * std::numeric_limits<double>::epsilon();
  for (int first = 0; first < n; ++first) {
    for (int step = 0;; ++step) {
      int last = first;
      while (last + 1 < n && std::abs(t->off[static_cast<size_t>(last)]) > negligible) ++last;
      if (last == first) break;
      if (step == kMaxSteps) throw Error("eigenvalues: the QL iteration does not converge");
      ql_step(first, last, t, vectors);
    }
  }
}

void make_largest_positive(double* vector, int n) {
  const auto smaller = [](double a, double b) { return std::abs(a) < std::abs(b); };
  if (*std::max_element(vector, vector + n, smaller) >= 0) return;
  for (int i = 0; i < n; ++i) vector[i] = -vector[i];
}

// Standard normal (Box and Muller).
double normal(Random* random) {
  const double radius = std::sqrt(-2 * std::log1p(-random->uniform()));
  return radius * std::cos(2 * std::numbers::pi * random->uniform());
}

// Singular values from falling eigenvalues of X^T X or X X^T.
std::vector<double> singular_values(std::vector<double> eigenvalues) {
  double largest = 0;
  for (double& value : eigenvalues) {
    value = std::sqrt(std::max(0.0, value));
    largest = std::max(largest, value);
    if (value < kRankTolerance * largest) value = 0;
  }
  return eigenvalues;
}

// Fewer rows than columns: through the smaller X X^T, and v_c = X^T u_c / value_c.
RightSvd right_svd_of_few(ConstMat rows) {
  const int n = static_cast<int>(rows.rows);
  const int width = static_cast<int>(rows.cols);
  Matrix x(n, width);
  for (int r = 0; r < n; ++r) {
    const std::span<const float> row = rows.row_span(r);
    if (all_finite(row)) std::copy(row.begin(), row.end(), x.row(r));
  }
  Matrix products(n, n);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) {
      products.row(i)[j] = products.row(j)[i] = dot(x.row(i), x.row(j), width);
    }
  }
  const Eigen eigen = symmetric_eigen(std::move(products));
  RightSvd out{singular_values(eigen.values), Matrix(n, width)};
  for (int c = 0; c < n; ++c) {
    const double value = out.values[static_cast<size_t>(c)];
    if (value == 0) continue;
    double* vector = out.vectors.row(c);
    for (int r = 0; r < n; ++r)
      add_scaled(eigen.vectors.row(c)[r] / value, x.row(r), width, vector);
    // What rounding left of the larger components matters beside a small one.
    for (int k = 0; k < c; ++k) {
      add_scaled(-dot(vector, out.vectors.row(k), width), out.vectors.row(k), width, vector);
    }
    const double norm = std::sqrt(dot(vector, vector, width));
    for (int j = 0; j < width; ++j) vector[j] /= norm;
    make_largest_positive(vector, width);
  }
  return out;
}

}  // namespace

Gram::Gram(int width) : upper_(width, width) { KVE_ASSERT(width > 0); }

void Gram::add(ConstMat rows, std::span<const double> offset) {
  constexpr int kBatch = 8;  // rows that share one pass over the sums
  const int n = width();
  KVE_ASSERT(rows.cols == n && (offset.empty() || offset.size() == static_cast<size_t>(n)));
  Matrix batch(kBatch, n);
  int held = 0;
  const auto flush = [&] {
    for (int i = 0; i < n; ++i) {
      double* sums = upper_.row(i) + i;
      for (int r = 0; r < held; ++r) add_scaled(batch.row(r)[i], batch.row(r) + i, n - i, sums);
    }
    count_ += held;
    held = 0;
  };
  for (int64_t r = 0; r < rows.rows; ++r) {
    const std::span<const float> row = rows.row_span(r);
    if (!all_finite(row)) continue;
    double* to = batch.row(held++);
    std::copy(row.begin(), row.end(), to);
    if (!offset.empty()) add_scaled(-1, offset.data(), n, to);
    if (held == kBatch) flush();
  }
  flush();
}

Matrix Gram::matrix() const {
  Matrix out = upper_;
  for (int i = 0; i < out.rows; ++i) {
    for (int j = 0; j < i; ++j) out.row(i)[j] = out.row(j)[i];
  }
  return out;
}

std::vector<double> finite_mean(ConstMat rows) {
  std::vector<double> mean(static_cast<size_t>(rows.cols));
  int64_t count = 0;
  for (int64_t r = 0; r < rows.rows; ++r) {
    const std::span<const float> row = rows.row_span(r);
    if (!all_finite(row)) continue;
    for (size_t i = 0; i < row.size(); ++i) mean[i] += row[i];
    ++count;
  }
  for (double& value : mean) value /= static_cast<double>(std::max<int64_t>(1, count));
  return mean;
}

Eigen symmetric_eigen(Matrix a) {
  KVE_ASSERT(a.rows == a.cols);
  const int n = a.rows;
  // Entries of at most 1 neither overflow nor vanish when they are squared.
  double largest = 0;
  for (const double value : a.values) {
    KVE_ASSERT(std::isfinite(value));
    largest = std::max(largest, std::abs(value));
  }
  const int exponent = largest > 0 ? std::ilogb(largest) : 0;
  for (double& value : a.values) value = std::ldexp(value, -exponent);

  std::vector<double> betas(static_cast<size_t>(n));
  Tridiagonal t = reduce(&a, &betas);
  Matrix vectors = transposed(multiply_reflections(a, betas));
  diagonalise(&t, &vectors);

  std::vector<int> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int i, int j) {
    return t.diagonal[static_cast<size_t>(i)] > t.diagonal[static_cast<size_t>(j)];
  });
  Eigen out{std::vector<double>(static_cast<size_t>(n)), Matrix(n, n)};
  for (int c = 0; c < n; ++c) {
    const int from = order[static_cast<size_t>(c)];
    out.values[static_cast<size_t>(c)] =
        std::ldexp(t.diagonal[static_cast<size_t>(from)], exponent);
    std::copy_n(vectors.row(from), n, out.vectors.row(c));
    make_largest_positive(out.vectors.row(c), n);
  }
  return out;
}

RightSvd right_svd(const Gram& gram) { return right_svd(gram.matrix()); }

RightSvd right_svd(Matrix products) {
  Eigen eigen = symmetric_eigen(std::move(products));
  RightSvd out{singular_values(std::move(eigen.values)), std::move(eigen.vectors)};
  for (int c = 0; c < out.vectors.rows; ++c) {
    if (out.values[static_cast<size_t>(c)] == 0) {
      std::fill_n(out.vectors.row(c), out.vectors.cols, 0.0);
    }
  }
  return out;
}

RightSvd right_svd(ConstMat rows) {
  if (rows.rows < rows.cols) return right_svd_of_few(rows);
  Gram gram(static_cast<int>(rows.cols));
  gram.add(rows);
  return right_svd(gram);
}

Matrix orthogonal_matrix(int n, uint64_t seed) {
  Matrix q(n, n);
  Random random(seed);
  for (double& value : q.values) value = normal(&random);
  for (int i = 0; i < n; ++i) {
    double* vector = q.row(i);
    for (int pass = 0; pass < 2; ++pass) {  // once leaves rounding errors, twice does not
      for (int k = 0; k < i; ++k) add_scaled(-dot(vector, q.row(k), n), q.row(k), n, vector);
    }
    const double norm = std::sqrt(dot(vector, vector, n));
    for (int j = 0; j < n; ++j) vector[j] /= norm;
  }
  return q;
}

int hadamard_block(int n) {
  KVE_ASSERT(n > 0);
  return n & -n;
}

Matrix hadamard_matrix(int n) {
  KVE_ASSERT(n > 0 && hadamard_block(n) == n);
  Matrix out(n, n);
  const double scale = 1 / std::sqrt(static_cast<double>(n));
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      const bool odd = std::popcount(static_cast<unsigned>(i & j)) % 2 != 0;
      out.row(i)[j] = odd ? -scale : scale;
    }
  }
  return out;
}

}  // namespace kve
