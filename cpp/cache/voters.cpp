#include "cache/voters.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "cache/anchor.h"
#include "kernels/few_rows.h"

namespace kve {

Voters::Voters(int most, const std::shared_ptr<MemoryCounter>& counter)
    : most_(most),
      queries_(CountedAllocator<float>(counter)),
      log_sums_(CountedAllocator<float>(counter)),
      fresh_(CountedAllocator<float>(counter)) {}

void Voters::want_moments(int skipped_tokens, const Rotation* rotation) {
  wants_moments_ = true;
  skipped_tokens_ = skipped_tokens;
  rotation_ = rotation;
}

float* Voters::log_sums(int64_t n, int n_heads) {
  fresh_.resize(static_cast<size_t>(n * n_heads));
  return fresh_.data();
}

void Voters::observe(ThreadPool& pool, const AttendParams& params, ConstMat q, int first_pos) {
  const bool other =
      (width_ != 0 && (width_ != q.cols || n_heads_ != params.n_heads)) ||
      (moments_ && (moments_->n_heads() != params.n_heads || moments_->dim() != params.key_dim));
  if (other) {
    throw FormatError(message("cache: expected queries of ", n_heads_, " heads and ", width_,
                              " values, as the restored state has them, found ", params.n_heads,
                              " heads and ", q.cols, " values"));
  }
  params_ = params;
  params_.alibi = nullptr;
  n_heads_ = params.n_heads;
  width_ = static_cast<int>(q.cols);
  few_pending_ = q.rows <= kFewRows;
  if (wants_moments_ && !moments_) restore_moments(params.n_heads, params.key_dim);
  const int64_t kept = few_pending_ ? q.rows : std::min<int64_t>(most_, q.rows);
  if (kept > 0) {
    const size_t queries = queries_.size() + static_cast<size_t>(kept * width_);
    const size_t sums = log_sums_.size() + static_cast<size_t>(kept * n_heads_);
    queries_.reserve(queries);
    log_sums_.reserve(sums);
    for (int64_t r = q.rows - kept; r < q.rows; ++r) {
      queries_.insert(queries_.end(), q.row(r), q.row(r) + width_);
      const auto row = fresh_.begin() + r * n_heads_;
      log_sums_.insert(log_sums_.end(), row, row + n_heads_);
    }
  }
  if (!few_pending_) {
    add_moments(pool, q, first_pos);
    CountedVector<float>(fresh_.get_allocator()).swap(fresh_);
  }
}

// Queries as they were before their rotary embedding.
void Voters::add_moments(ThreadPool& pool, ConstMat q, int first_pos) {
  const int64_t skipped = std::max(0, skipped_tokens_ - first_pos);
  if (!moments_ || skipped >= q.rows) return;
  q = q.block(skipped, q.rows - skipped);
  if (rotation_ == nullptr) return moments_->add(pool, q);
  BasisView view;
  view.frequencies = rotation_->frequencies.data();
  view.n_pairs = static_cast<int32_t>(rotation_->frequencies.size());
  view.interleaved = rotation_->interleaved;
  const int dim = moments_->dim();
  std::vector<float> turned(static_cast<size_t>(q.rows * q.cols));
  constexpr int64_t kRows = 16;
  pool.parallel((q.rows + kRows - 1) / kRows, [&](int64_t chunk) {
    for (int64_t r = chunk * kRows; r < std::min(q.rows, (chunk + 1) * kRows); ++r) {
      float* row = turned.data() + r * q.cols;
      std::copy_n(q.row(r), q.cols, row);
      rotate(Mat(row, q.cols / dim, dim), view, first_pos + skipped + r, -1);
    }
  });
  moments_->add(pool, {turned.data(), q.rows, q.cols});
}

void Voters::prepare_commit(ThreadPool& pool, int n, int first_pos) {
  if (!few_pending_) return;
  // One by one, so that sums have the same bits however many are committed at once.
  const int there = pending(n);
  for (int i = 0; i < there; ++i) add_moments(pool, queries(committed_ + i, 1), first_pos + i);
}

void Voters::finish_commit(int n) noexcept {
  committed_ += pending(n);
  // What is not kept goes now; of the others, the oldest go many at a time.
  if (most_ == 0 || committed_ >= 2 * most_ + kFewRows) {
    drop(0, committed_ - most_);
    committed_ = most_;
  }
}

void Voters::rollback() noexcept {
  drop(committed_, rows() - committed_);
  few_pending_ = false;
}

void Voters::forget(int n) noexcept {
  rollback();
  const int gone = std::min(n, committed_);
  drop(committed_ - gone, gone);
  committed_ -= gone;
}

void Voters::drop(int first, int n) noexcept {
  const auto erase = [&](CountedVector<float>* memory, int width) {
    const auto begin = memory->begin() + std::ptrdiff_t{first} * width;
    memory->erase(begin, begin + std::ptrdiff_t{n} * width);
  };
  erase(&queries_, width_);
  erase(&log_sums_, n_heads_);
}

void Voters::clear() noexcept {
  committed_ = 0;
  few_pending_ = false;
  for (CountedVector<float>* memory : {&queries_, &log_sums_, &fresh_}) {
    CountedVector<float>(memory->get_allocator()).swap(*memory);
  }
  if (moments_) moments_->clear();
}

size_t Voters::bytes() const {
  return (queries_.capacity() + log_sums_.capacity() + fresh_.capacity()) * sizeof(float) +
         (moments_ ? moments_->bytes() : 0);
}

QueryMoments* Voters::restore_moments(int n_heads, int dim) {
  return &moments_.emplace(n_heads, dim, queries_.get_allocator().counter());
}

void Voters::restore(int n, int n_heads, int width) {
  clear();
  width_ = width;
  n_heads_ = n_heads;
  queries_.resize(static_cast<size_t>(n) * static_cast<size_t>(width));
  log_sums_.resize(static_cast<size_t>(n) * static_cast<size_t>(n_heads));
  committed_ = n;
}

}  // namespace kve
