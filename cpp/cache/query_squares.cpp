#include "cache/query_squares.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels/few_rows.h"

namespace kve {

QuerySquares::QuerySquares(int n_kv_heads, int key_dim, int64_t most, bool newest,
                           const std::shared_ptr<MemoryCounter>& counter)
    : n_kv_heads_(n_kv_heads),
      key_dim_(key_dim),
      most_(most),
      newest_(newest),
      sums_(CountedAllocator<double>(counter)),
      rows_(CountedAllocator<float>(counter)) {}

void QuerySquares::append(ConstMat q) {
  const auto row_values = static_cast<int64_t>(width());
  const int64_t group = q.cols / row_values;  // query heads of a kv head
  const int64_t wanted =
      newest_ ? std::max<int64_t>(most_, kFewRows) : most_ - count_ - static_cast<int64_t>(rows());
  const int64_t n = std::clamp<int64_t>(wanted, 0, q.rows);
  if (!newest_) sums_.resize(width());
  size_t at = rows_.size();
  rows_.resize(at + static_cast<size_t>(n * row_values));
  const int64_t first = newest_ ? q.rows - n : 0;
  for (int64_t row = first; row < first + n; ++row) {
    for (int64_t head = 0; head < n_kv_heads_; ++head) {
      for (int64_t d = 0; d < key_dim_; ++d) {
        float sum = 0;
        for (int64_t g = 0; g < group; ++g) {
          const float value = q.row(row)[(head * group + g) * key_dim_ + d];
          sum += value * value;
        }
        // Queries, unlike keys, may be anything; squares stay numbers, and so do sums of them.
        rows_[at++] = std::fmin(sum / static_cast<float>(group), FLT_MAX);
      }
    }
  }
}

void QuerySquares::commit(int n_tokens) noexcept {
  const size_t n = std::min(rows() - held(), static_cast<size_t>(n_tokens));
  if (newest_) {
    count_ += static_cast<int64_t>(n);
    if (count_ > most_) {
      drop(0, static_cast<size_t>(count_ - most_));
      count_ = most_;
    }
    return;
  }
  for (size_t row = 0; row < n; ++row) {
    for (size_t i = 0; i < sums_.size(); ++i) {
      sums_[i] += static_cast<double>(rows_[row * sums_.size() + i]);
    }
  }
  count_ += static_cast<int64_t>(n);
  drop(0, n);
}

void QuerySquares::rollback() noexcept { drop(held(), rows() - held()); }

void QuerySquares::forget(int n_tokens) noexcept {
  rollback();
  const size_t n = std::min(held(), static_cast<size_t>(n_tokens));
  drop(held() - n, n);
  if (newest_) count_ -= static_cast<int64_t>(n);
}

void QuerySquares::drop(size_t first, size_t n) noexcept {
  const auto begin = rows_.begin() + static_cast<std::ptrdiff_t>(first * width());
  rows_.erase(begin, begin + static_cast<std::ptrdiff_t>(n * width()));
}

void QuerySquares::clear() noexcept {
  count_ = 0;
  CountedVector<double>(sums_.get_allocator()).swap(sums_);
  CountedVector<float>(rows_.get_allocator()).swap(rows_);
}

std::span<double> QuerySquares::restore(int64_t count) {
  count_ = count;
  sums_.resize(count > 0 ? width() : 0);
  return sums_;
}

std::span<const float> QuerySquares::newest() const {
  return std::span(rows_).first(held() * width());
}

std::span<float> QuerySquares::restore_newest(int64_t count) {
  count_ = count;
  rows_.resize(static_cast<size_t>(count) * width());
  return rows_;
}

std::vector<double> QuerySquares::means(int kv_head, int n_new) const {
  const auto dim = static_cast<size_t>(key_dim_);
  std::vector<double> out(dim, 1.0);
  const size_t end = std::min(rows(), held() + static_cast<size_t>(n_new));
  const size_t begin = newest_ ? end - std::min(end, static_cast<size_t>(most_)) : 0;
  const int64_t count = static_cast<int64_t>(end - begin) + (newest_ ? 0 : count_);
  if (count == 0) return out;
  for (size_t d = 0; d < dim; ++d) {
    const size_t at = static_cast<size_t>(kv_head) * dim + d;
    double sum = newest_ ? 0 : sums_[at];
    for (size_t row = begin; row < end; ++row) {
      sum += static_cast<double>(rows_[row * width() + at]);
    }
    out[d] = sum / static_cast<double>(count);
  }
  return out;
}

size_t QuerySquares::bytes() const {
  return sums_.capacity() * sizeof(double) + rows_.capacity() * sizeof(float);
}

}  // namespace kve
