// Means and covariances of the queries of one layer, before their rotary embedding, and what they
// say about queries to come.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "base/thread_pool.h"

namespace kve {

// Of each query head: sums of queries and of their products, of 64 rows of a pass in float32, of
// those in float64: how a prompt is cut into passes changes them by about 1e-7.
class QueryMoments {
 public:
  QueryMoments(int n_heads, int dim, const std::shared_ptr<MemoryCounter>& counter);

  int n_heads() const { return n_heads_; }
  int dim() const { return dim_; }
  int64_t count() const { return count_; }
  size_t bytes() const { return sums_.capacity() * sizeof(double); }
  void clear() noexcept;
  // q [n, n_heads * dim], not rotated. Sums do not depend on the number of threads.
  void add(ThreadPool& pool, ConstMat q);

  // Of one query head: its mean [dim] and covariance [dim, dim], zeros before the first query.
  void mean(int head, std::span<double> out) const;
  void covariance(int head, std::span<double> out) const;

  // For kv_cache_io: what was added up, and memory for that of `count` queries.
  const CountedVector<double>& sums() const { return sums_; }
  std::span<double> restore(int64_t count);

 private:
  void add_head(int head, ConstMat q);
  size_t per_head() const {
    return static_cast<size_t>(dim_) * static_cast<size_t>(dim_ + 1);  // sums, then products
  }

  int n_heads_;
  int dim_;
  int64_t count_ = 0;
  // [n_heads, dim + dim * dim]; of products, which are symmetric, those right of the diagonal
  // count.
  CountedVector<double> sums_;
};

// ExpectedAttention's future queries (arXiv 2510.00636): the mean and the covariance of a head,
// turned by the average rotation to positions from, ..., from + n - 1. frequencies [n_pairs]
// radians per position, empty: nothing is rotated. means [dim], spread [dim, dim].
void turn_to_future(std::span<const double> frequencies, bool interleaved, int64_t from, int n,
                    std::span<const double> mean, std::span<const double> covariance, float* means,
                    Mat spread);

}  // namespace kve
