#include "cache/select/future_queries.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "cache/select/floats8.h"

namespace kve {

QueryMoments::QueryMoments(int n_heads, int dim, const std::shared_ptr<MemoryCounter>& counter)
    : n_heads_(n_heads), dim_(dim), sums_(CountedAllocator<double>(counter)) {}

void QueryMoments::clear() noexcept {
  CountedVector<double>(sums_.get_allocator()).swap(sums_);
  count_ = 0;
}

void QueryMoments::add(ThreadPool& pool, ConstMat q) {
  KVE_ASSERT(q.cols == int64_t{n_heads_} * dim_);
  if (q.rows == 0) return;
  sums_.resize(per_head() * static_cast<size_t>(n_heads_));
  pool.parallel(n_heads_, [&](int64_t head) { add_head(static_cast<int>(head), q); });
  count_ += q.rows;
}

namespace {

constexpr size_t kRows = 64;  // whose products are added up in float32 first
constexpr size_t kColumns = 8;
constexpr size_t kTogether = 4;

// Columns of rows: their sums and those of their products, which stay in registers.
struct MomentBlock {
  const float* values;  // [n][padded]
  size_t n;
  size_t padded;  // columns, a multiple of kColumns that is filled with zeros
  size_t dim;

  void add_sums(double* sums) const {
    for (size_t j = 0; j < dim; j += kColumns) {
      Floats8 sum;
      for (size_t r = 0; r < n; ++r) {
        Floats8 row;
        row.load(values + r * padded + j);
        sum.add(1, row);
      }
      float added[kColumns];
      sum.store(added);
      for (size_t c = 0; c < std::min(kColumns, dim - j); ++c) sums[j + c] += double{added[c]};
    }
  }

  // Of the columns [i, i + kTogether) with [j, j + kColumns).
  void add_products(size_t i, size_t j, double* products) const {
    Floats8 first_sum;
    Floats8 second_sum;
    Floats8 third_sum;
    Floats8 fourth_sum;
    for (size_t r = 0; r < n; ++r) {
      const float* left = values + r * padded + i;
      Floats8 right;
      right.load(values + r * padded + j);
      first_sum.add(left[0], right);
      second_sum.add(left[1], right);
      third_sum.add(left[2], right);
      fourth_sum.add(left[3], right);
    }
    float added[kTogether][kColumns];
    first_sum.store(added[0]);
    second_sum.store(added[1]);
    third_sum.store(added[2]);
    fourth_sum.store(added[3]);
    for (size_t t = 0; t < std::min(kTogether, dim - i); ++t) {
      double* to = products + (i + t) * dim + j;
      for (size_t c = 0; c < std::min(kColumns, dim - j); ++c) to[c] += double{added[t][c]};
    }
  }
};

}  // namespace

void QueryMoments::add_head(int head, ConstMat q) {
  const auto dim = static_cast<size_t>(dim_);
  const size_t padded = (dim + kColumns - 1) / kColumns * kColumns;
  double* sums = sums_.data() + per_head() * static_cast<size_t>(head);
  std::vector<float> values(std::min(kRows, static_cast<size_t>(q.rows)) * padded);
  for (int64_t first = 0; first < q.rows; first += kRows) {
    const auto n = std::min(kRows, static_cast<size_t>(q.rows - first));
    for (size_t r = 0; r < n; ++r) {
      std::copy_n(q.row(first + static_cast<int64_t>(r)) + int64_t{head} * dim_, dim,
                  values.begin() + static_cast<std::ptrdiff_t>(r * padded));
    }
    const MomentBlock block{values.data(), n, padded, dim};
    block.add_sums(sums);
    // kColumns is a multiple of kTogether: rows of one step begin in the same columns.
    for (size_t i = 0; i < dim; i += kTogether) {
      for (size_t j = i / kColumns * kColumns; j < dim; j += kColumns) {
        block.add_products(i, j, sums + dim);
      }
    }
  }
}

void QueryMoments::mean(int head, std::span<double> out) const {
  const double* sums = sums_.data() + per_head() * static_cast<size_t>(head);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = count_ > 0 ? sums[i] / static_cast<double>(count_) : 0;
  }
}

void QueryMoments::covariance(int head, std::span<double> out) const {
  const auto dim = static_cast<size_t>(dim_);
  std::vector<double> means(dim);
  mean(head, means);
  const double* products = sums_.data() + per_head() * static_cast<size_t>(head) + dim;
  for (size_t i = 0; i < dim * dim; ++i) {
    const size_t at = i / dim <= i % dim ? i : i % dim * dim + i / dim;
    const double square = count_ > 0 ? products[at] / static_cast<double>(count_) : 0;
    out[i] = square - means[i / dim] * means[i % dim];
  }
}

std::span<double> QueryMoments::restore(int64_t count) {
  count_ = count;
  sums_.resize(count > 0 ? per_head() * static_cast<size_t>(n_heads_) : 0);
  return sums_;
}

void turn_to_future(std::span<const double> frequencies, bool interleaved, int64_t from, int n,
                    std::span<const double> mean, std::span<const double> covariance, float* means,
                    Mat spread) {
  const size_t dim = mean.size();
  const size_t n_pairs = frequencies.size();
  // The average rotation of a pair is a rotation times a factor: cosine and sine averaged.
  std::vector<double> cosines(n_pairs);
  std::vector<double> sines(n_pairs);
  for (size_t p = 0; p < n_pairs; ++p) {
    // Of angles with equal steps: the middle one, times sin(n step / 2) / (n sin(step / 2)).
    const double half_step = frequencies[p] / 2;
    const double middle = (2.0 * static_cast<double>(from) + n - 1) * half_step;
    const double whole = n * std::sin(half_step);
    const double factor = whole != 0 ? std::sin(n * half_step) / whole : 1;
    cosines[p] = factor * std::cos(middle);
    sines[p] = factor * std::sin(middle);
  }
  const auto turn = [&](double* values, size_t stride) {
    for (size_t p = 0; p < n_pairs; ++p) {
      double& a = values[(interleaved ? 2 * p : p) * stride];
      double& b = values[(interleaved ? 2 * p + 1 : p + n_pairs) * stride];
      const double turned = a * cosines[p] - b * sines[p];
      b = a * sines[p] + b * cosines[p];
      a = turned;
    }
  };
  std::vector<double> turned(mean.begin(), mean.end());
  turn(turned.data(), 1);
  for (size_t i = 0; i < dim; ++i) means[i] = static_cast<float>(turned[i]);
  turned.assign(covariance.begin(), covariance.end());
  for (size_t i = 0; i < dim; ++i) turn(turned.data() + i * dim, 1);  // rows
  for (size_t j = 0; j < dim; ++j) turn(turned.data() + j, dim);      // columns
  for (size_t i = 0; i < dim; ++i) {
    for (size_t j = 0; j < dim; ++j) {
      spread.row(static_cast<int64_t>(i))[j] = static_cast<float>(turned[i * dim + j]);
    }
  }
}

}  // namespace kve
