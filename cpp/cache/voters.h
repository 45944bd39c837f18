// What a selector wants to know of the queries of one layer: the newest ones with the sums of their
// weights, so that these can be computed again, or the mean and covariance of all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "cache/select/future_queries.h"
#include "cache/side_cache.h"
#include "kernels/backend.h"

namespace kve {

// Queries of a pass of at most kFewRows tokens wait until their tokens are committed, which may be
// some of them only. Longer passes are committed as a whole, or not at all; the moments of their
// queries stay counted in either case.
class Voters {
 public:
  // `most`: how many committed queries are kept; 0: none.
  explicit Voters(int most, const std::shared_ptr<MemoryCounter>& counter);

  // Counts moments from now on, but for those of the first tokens. rotation: null where queries are
  // not rotated; it must stay alive.
  void want_moments(int skipped_tokens, const Rotation* rotation);

  // Room for the sums [n, n_heads] of a pass, which attend() fills. Throws CapacityError.
  float* log_sums(int64_t n, int n_heads);
  // The queries of that pass, of tokens from first_pos on. Throws CapacityError, and FormatError
  // where restored queries are of another model. counted: nobody will ask what these give.
  void observe(Backend& backend, const AttendParams& params, ConstMat q, int first_pos,
               bool counted);
  // The first n appended tokens, from first_pos on, are about to be committed. Throws
  // CapacityError.
  void prepare_commit(Backend& backend, int n, int first_pos);
  void finish_commit(int n) noexcept;
  void rollback() noexcept;
  // The newest n committed tokens are gone.
  void forget(int n) noexcept;
  // As if there had been no query.
  void clear() noexcept;
  size_t bytes() const;

  // Of the newest attention of this layer; the slopes of linear biases live as long as this does.
  AttendParams params() const {
    AttendParams out = params_;
    out.alibi = slopes_.empty() ? nullptr : slopes_.data();
    return out;
  }
  int most() const { return most_; }
  bool wants_moments() const { return wants_moments_; }
  int committed() const { return committed_; }
  // How many of the pending queries are of the first n appended tokens.
  int pending(int n) const { return std::min(n, rows() - committed_); }
  // Rows from `first` on, of the committed and then the pending queries, and their sums.
  ConstMat queries(int first, int n) const {
    return {queries_.data() + int64_t{first} * width_, n, width_};
  }
  const float* sums_of(int first) const { return log_sums_.data() + int64_t{first} * n_heads_; }
  const QueryMoments* moments() const { return moments_ ? &*moments_ : nullptr; }

  // For kv_cache_io: committed queries, in memory that the caller fills. Throws CapacityError.
  int width() const { return width_; }
  int n_heads() const { return n_heads_; }
  void restore(int n, int n_heads, int width);
  QueryMoments* restore_moments(int n_heads, int dim);
  float* writable_queries() { return queries_.data(); }
  float* writable_sums() { return log_sums_.data(); }

 private:
  int rows() const { return width_ == 0 ? 0 : static_cast<int>(queries_.size()) / width_; }
  void add_moments(Backend& backend, ConstMat q, int first_pos);
  void drop(int first, int n) noexcept;

  int most_;
  AttendParams params_;
  std::vector<float> slopes_;
  int width_ = 0;  // of a query of all heads, once one was seen
  int n_heads_ = 0;
  int committed_ = 0;
  bool few_pending_ = false;
  CountedVector<float> queries_;   // [rows, width]
  CountedVector<float> log_sums_;  // [rows, n_heads]
  CountedVector<float> fresh_;     // [n, n_heads] of the pass at hand
  bool wants_moments_ = false;
  std::optional<QueryMoments> moments_;  // once the number of query heads is known
  int skipped_tokens_ = 0;
  const Rotation* rotation_ = nullptr;
};

}  // namespace kve
