// The keys or the values of one layer and kv head: pages of coded rows, then the f16 tail.
#pragma once

#include <memory>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "cache/page.h"
#include "cache/spec.h"
#include "cache/stats.h"
#include "kernels/backend.h"

namespace kve {

class SideCache {
 public:
  SideCache(const SideSpec& spec, int width, const std::shared_ptr<MemoryCounter>& counter);
  // Copying shares the pages and copies the tail.

  int rows() const { return pages_.rows() + tail_rows(); }
  int width() const { return width_; }
  const PageList& pages() const { return pages_; }
  SideView view() const;

  // Adds rows [n, width] and the jobs that write them; the bytes are there once the jobs have run.
  // Throws CapacityError; truncate() to the former rows() then undoes what was done.
  void append(ConstMat rows, std::vector<SealJob>* jobs);

  // Moves the oldest rows of the tail to pages while it holds more than the spec asks for, always
  // filling pages up to their end; the newest `appended` rows do not count. In two steps: the jobs
  // that begin_seal() adds write to pages that finish_seal() makes part of the rows or
  // cancel_seal() forgets.
  void begin_seal(int appended, std::vector<SealJob>* jobs);
  void finish_seal() noexcept;
  void cancel_seal() noexcept;

  // How many of the appended and following rows are committed when the tail is next sealed.
  int rows_until_seal(int appended) const;

  // Forgets rows from n on.
  void truncate(int n_rows) noexcept;
  void drop_front(int n_pages) noexcept { pages_.drop_front(n_pages); }
  // Gives back the memory that a long chunk left in the tail.
  void release_spare() noexcept;

  // All rows in f32, into out [rows(), width].
  void decode(Mat out) const;
  // Adds the bytes of this side to codes, scales, tail and meta.
  void count(CacheStats* stats) const;

  // For kv_cache_io: adds coded rows whose bytes the caller writes, and sets the tail's bytes.
  void restore(int coded_rows, int tail_rows);
  std::byte* restored_page(size_t page) { return pages_.writable(page); }
  uint16_t* restored_tail() { return tail_.data(); }

 private:
  int tail_rows() const { return static_cast<int>(tail_.size() / static_cast<size_t>(width_)); }
  size_t values(int rows) const { return static_cast<size_t>(rows) * static_cast<size_t>(width_); }
  int sealable_rows(int appended) const;
  void reserve_tail(int rows);
  void add_page_jobs(int first_row, int n, SealJob source, std::vector<SealJob>* jobs);

  SideSpec spec_;
  int width_;
  int sealing_ = 0;  // rows that are in pages and still in the tail
  PageList pages_;
  CountedVector<uint16_t> tail_;  // f16 [tail_rows, width]
};

}  // namespace kve
