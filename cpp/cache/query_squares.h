// What a projector may want to know of the queries of one layer: their mean squares per kv head and
// channel, of the first tokens or of the newest.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/span.h"

namespace kve {

// Queries are counted when their tokens are committed, token by token and only the first or the
// newest so many, so that the sums do not depend on how a prompt was cut into passes. Of the first
// ones, those of tokens that were forgotten later, but not all, stay counted.
class QuerySquares {
 public:
  // `n_kv_heads` 0: nothing is collected; `most`: how many tokens count, the newest or the first.
  QuerySquares(int n_kv_heads, int key_dim, int64_t most, bool newest,
               const std::shared_ptr<MemoryCounter>& counter);

  bool collects() const { return n_kv_heads_ > 0; }
  bool of_newest() const { return newest_; }
  // q [n, n_heads * key_dim]: of n tokens that are appended. Of many tokens (more than kFewRows),
  // which are committed together, only those that may count are kept. Throws CapacityError, and
  // nothing has changed.
  void append(ConstMat q);
  void commit(int n_tokens) noexcept;
  void rollback() noexcept;
  // The newest n_tokens committed tokens are gone.
  void forget(int n_tokens) noexcept;
  // Forgets everything, and gives all memory back.
  void clear() noexcept;

  // [key_dim], as after commit(n_new); ones before the first token.
  std::vector<double> means(int kv_head, int n_new) const;
  size_t bytes() const;

  // For kv_cache_io; `newest` [count, n_kv_heads, key_dim], the oldest first.
  int64_t count() const { return count_; }
  int64_t most() const { return most_; }
  const CountedVector<double>& sums() const { return sums_; }
  // Memory for the sums of `count` tokens, which the caller writes. Throws CapacityError.
  std::span<double> restore(int64_t count);
  std::span<const float> newest() const;
  std::span<float> restore_newest(int64_t count);

 private:
  size_t width() const { return static_cast<size_t>(n_kv_heads_) * static_cast<size_t>(key_dim_); }
  size_t rows() const { return rows_.empty() ? 0 : rows_.size() / width(); }
  // Rows of committed tokens, before those of appended ones.
  size_t held() const { return newest_ ? static_cast<size_t>(count_) : 0; }
  void drop(size_t first, size_t n) noexcept;

  int n_kv_heads_;
  int key_dim_;
  int64_t most_;
  bool newest_;
  int64_t count_ = 0;
  CountedVector<double> sums_;  // [n_kv_heads, key_dim]; empty before the first queries
  CountedVector<float> rows_;   // [tokens, n_kv_heads, key_dim]: the newest, then appended ones
};

}  // namespace kve
