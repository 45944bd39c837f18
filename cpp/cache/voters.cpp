#include "cache/voters.h"

#include <algorithm>
#include <complex>
#include <span>
#include <vector>

#include "base/error.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

constexpr int64_t kAngleRows = 16;  // whose angles go on from the first of them

// Cosines and minus the sines of n positions from `first` on: what turns rows there back to 0.
// Angles are computed for every 16th position in double precision and then go on by one position,
// which is exact to 1e-14.
void angles_back(const Rotation& rotation, int64_t first, int64_t n, ThreadPool& pool, Mat cosines,
                 Mat sines) {
  const auto n_pairs = rotation.frequencies.size();
  pool.parallel((n + kAngleRows - 1) / kAngleRows, [&](int64_t chunk) {
    const int64_t begin = chunk * kAngleRows;
    for (size_t p = 0; p < n_pairs; ++p) {
      const std::complex<double> step = std::polar(1.0, rotation.frequencies[p]);
      auto angle = std::polar(1.0, static_cast<double>(first + begin) * rotation.frequencies[p]);
      for (int64_t r = begin; r < std::min(n, begin + kAngleRows); ++r, angle *= step) {
        cosines.row(r)[p] = static_cast<float>(angle.real());
        sines.row(r)[p] = static_cast<float>(-angle.imag());
      }
    }
  });
}

}  // namespace

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

void Voters::observe(Backend& backend, const AttendParams& params, ConstMat q, int first_pos,
                     bool counted) {
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
  if (params.alibi != nullptr) slopes_.assign(params.alibi, params.alibi + params.n_heads);
  n_heads_ = params.n_heads;
  width_ = static_cast<int>(q.cols);
  few_pending_ = q.rows <= kFewRows && !counted;
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
    add_moments(backend, q, first_pos);
    if (q.rows > kFewRows) CountedVector<float>(fresh_.get_allocator()).swap(fresh_);
  }
}

// Queries as they were before their rotary embedding.
void Voters::add_moments(Backend& backend, ConstMat q, int first_pos) {
  const int64_t skipped = std::max(0, skipped_tokens_ - first_pos);
  if (!moments_ || skipped >= q.rows) return;
  q = q.block(skipped, q.rows - skipped);
  if (rotation_ == nullptr) return moments_->add(backend.pool(), q);
  const auto n_pairs = static_cast<int64_t>(rotation_->frequencies.size());
  std::vector<float> angles(static_cast<size_t>(2 * q.rows * n_pairs));
  const Mat cosines(angles.data(), q.rows, n_pairs);
  const Mat sines(cosines.row(q.rows), q.rows, n_pairs);
  angles_back(*rotation_, first_pos + skipped, q.rows, backend.pool(), cosines, sines);
  std::vector<float> turned;
  turned.reserve(static_cast<size_t>(q.rows * q.cols));
  for (int64_t r = 0; r < q.rows; ++r) turned.insert(turned.end(), q.row(r), q.row(r) + q.cols);
  const Mat rows(turned.data(), q.rows, q.cols);
  backend.rope(rows, moments_->dim(),
               rotation_->interleaved ? RopeLayout::interleaved : RopeLayout::half_split, cosines,
               sines);
  moments_->add(backend.pool(), rows);
}

void Voters::prepare_commit(Backend& backend, int n, int first_pos) {
  if (!few_pending_) return;
  // One by one, so that sums have the same bits however many are committed at once.
  const int there = pending(n);
  for (int i = 0; i < there; ++i) add_moments(backend, queries(committed_ + i, 1), first_pos + i);
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
