#include "cache/side_cache.h"

#include <algorithm>

#include "base/error.h"

namespace kve {

SideCache::SideCache(const SideSpec& spec, int width, const std::shared_ptr<MemoryCounter>& counter)
    : spec_(spec),
      width_(width),
      pages_(counter, spec.codec, width),
      tail_(CountedAllocator<uint16_t>(counter)) {}

SideView SideCache::view() const {
  return {.codec = spec_.codec,
          .width = width_,
          .pages = pages_.views(),
          .tail = tail_.data(),
          .tail_rows = tail_rows()};
}

// Splits rows [first_row, first_row + n) of the pages into one job per page; `source` says where
// the first of them comes from.
void SideCache::add_page_jobs(int first_row, int n, SealJob source, std::vector<SealJob>* jobs) {
  for (int done = 0; done < n; done += source.n_rows) {
    const int row = first_row + done;
    source.first_row = row % kPageTokens;
    source.n_rows = std::min(n - done, kPageTokens - source.first_row);
    source.page = pages_.writable(static_cast<size_t>(row / kPageTokens));
    jobs->push_back(source);
    if (source.f32 != nullptr) source.f32 += source.n_rows * source.stride;
    if (source.f16 != nullptr) source.f16 += source.n_rows * source.stride;
  }
}

void SideCache::append(ConstMat rows, std::vector<SealJob>* jobs) {
  const int n = static_cast<int>(rows.rows);
  SealJob job{.codec = spec_.codec, .f32 = rows.data, .stride = rows.stride, .width = width_};
  if (spec_.eager()) {
    const int first_row = pages_.rows();
    pages_.grow(n);
    add_page_jobs(first_row, n, job, jobs);
    return;
  }
  // The tail is laid out as one f16 page of any length.
  const int first_row = tail_rows();
  reserve_tail(first_row + n);
  tail_.resize(values(first_row + n));
  job.codec = {CodecId::f16, 0};
  job.n_rows = n;
  job.page = reinterpret_cast<std::byte*>(tail_.data());
  job.first_row = first_row;
  jobs->push_back(job);
}

void SideCache::reserve_tail(int rows) {
  const size_t needed = values(rows);
  if (needed <= tail_.capacity()) return;
  // Token by token the tail never exceeds tail + 64 rows, so that is all it grows to; long tails
  // get there by halves, as they may never fill.
  const size_t most = values(spec_.tail + kPageTokens);
  const size_t half_more = std::max(tail_.capacity() * 3 / 2, values(kPageTokens));
  tail_.reserve(std::max(needed, std::min(most, half_more)));
}

void SideCache::release_spare() noexcept {
  const size_t enough = values(spec_.tail + kPageTokens);
  if (tail_.capacity() <= enough || tail_.size() > enough) return;
  try {
    CountedVector<uint16_t> smaller(tail_.get_allocator());
    smaller.reserve(enough);
    smaller.assign(tail_.begin(), tail_.end());
    tail_.swap(smaller);
  } catch (const CapacityError&) {
    // No memory for the smaller copy: keep the large one.
  }
}

int SideCache::rows_until_seal(int appended) const {
  if (spec_.eager()) return INT32_MAX;
  const int spare = tail_rows() - appended - spec_.tail;
  return std::max(1, kPageTokens - pages_.rows() % kPageTokens - spare);
}

int SideCache::sealable_rows(int appended) const {
  if (spec_.eager()) return 0;
  const int spare = tail_rows() - appended - spec_.tail;
  const int room = kPageTokens - pages_.rows() % kPageTokens;
  if (spare < room) return 0;
  return room + (spare - room) / kPageTokens * kPageTokens;
}

void SideCache::begin_seal(int appended, std::vector<SealJob>* jobs) {
  const int n = sealable_rows(appended);
  if (n == 0) return;
  const int first_row = pages_.rows();
  pages_.grow(n);
  sealing_ = n;
  add_page_jobs(first_row, n,
                {.codec = spec_.codec, .f16 = tail_.data(), .stride = width_, .width = width_},
                jobs);
}

void SideCache::finish_seal() noexcept {
  tail_.erase(tail_.begin(), tail_.begin() + static_cast<std::ptrdiff_t>(values(sealing_)));
  sealing_ = 0;
  release_spare();
}

void SideCache::cancel_seal() noexcept {
  pages_.truncate(pages_.rows() - sealing_);
  sealing_ = 0;
}

void SideCache::truncate(int n_rows) noexcept {
  const int coded = std::min(n_rows, pages_.rows());
  pages_.truncate(coded);
  const size_t kept = values(n_rows - coded);
  if (kept < tail_.size()) tail_.resize(kept);
}

void SideCache::decode(Mat out) const {
  const CacheCodec& c = codec(spec_.codec.id);
  int row = 0;
  for (const PageView& page : pages_.views()) {
    c.decode(page.data, 0, page.rows, width_, spec_.codec.group, out.row(row), out.stride);
    row += page.rows;
  }
  codec(CodecId::f16)
      .decode(reinterpret_cast<const std::byte*>(tail_.data()), 0, tail_rows(), width_, 0,
              out.row(row), out.stride);
}

void SideCache::count(CacheStats* stats) const {
  stats->codes += static_cast<int64_t>(pages_.code_bytes());
  stats->scales += static_cast<int64_t>(pages_.scale_bytes());
  stats->tail += static_cast<int64_t>(tail_.capacity() * sizeof(uint16_t));
  stats->meta += static_cast<int64_t>(pages_.meta_bytes());
}

void SideCache::restore(int coded_rows, int tail_rows) {
  pages_.grow(coded_rows);
  reserve_tail(tail_rows);
  tail_.resize(values(tail_rows));
}

}  // namespace kve
