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

// Some queries at a time, and some columns of their products, so that these stay in registers; a
// few products are added up in float32 first.
void QueryMoments::add_head(int head, ConstMat q) {
  constexpr size_t kRows = 16;
  constexpr size_t kColumns = 8;
  constexpr size_t kTogether = 4;
  const auto dim = static_cast<size_t>(dim_);
  const size_t padded = (dim + kColumns - 1) / kColumns * kColumns;
  double* sums = sums_.data() + per_head() * static_cast<size_t>(head);
  double* products = sums + dim;
  std::vector<float> block(kRows * padded);
  for (int64_t first = 0; first < q.rows; first += kRows) {
    for (size_t r = 0; r < kRows; ++r) {
      const int64_t row = first + static_cast<int64_t>(r);
      for (size_t i = 0; i < dim; ++i) {
        block[r * padded + i] = row < q.rows ? q.row(row)[int64_t{head} * dim_ + i] : 0.0f;
        sums[i] += double{block[r * padded + i]};
      }
    }
    // kColumns is a multiple of kTogether: rows of one step begin in the same columns.
    for (size_t i = 0; i < dim; i += kTogether) {
      for (size_t j = i / kColumns * kColumns; j < dim; j += kColumns) {
        Floats8 first_sum{};
        Floats8 second_sum{};
        Floats8 third_sum{};
        Floats8 fourth_sum{};
        for (size_t r = 0; r < kRows; ++r) {
          const float* left = &block[r * padded + i];
          Floats8 right;
          load(&block[r * padded + j], &right);
          first_sum += left[0] * right;
          second_sum += left[1] * right;
          third_sum += left[2] * right;
          fourth_sum += left[3] * right;
        }
        float added[kTogether][kColumns];
        store(first_sum, added[0]);
        store(second_sum, added[1]);
        store(third_sum, added[2]);
        store(fourth_sum, added[3]);
        const size_t n = std::min(kColumns, dim - j);
        for (size_t t = 0; t < std::min(kTogether, dim - i); ++t) {
          double* to = products + (i + t) * dim + j;
          for (size_t c = 0; c < n; ++c) to[c] += double{added[t][c]};
        }
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
    for (int i = 0; i < n; ++i) {
      const double angle = static_cast<double>(from + i) * frequencies[p];
      cosines[p] += std::cos(angle) / n;
      sines[p] += std::sin(angle) / n;
    }
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
