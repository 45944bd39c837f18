// The unit of compressed storage: up to kPageTokens rows of one layer and side, of one kv head or
// of all.
//
// A page is one block of memory (its rows as the codec lays them out), shared by the page lists of
// forked caches. Every list shows its own number of rows of it: rows
// that a list shows never change, and a list writes rows only to pages that it alone holds.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/memory.h"
#include "kernels/backend.h"

namespace kve {

// All pages of one side, oldest first; all but the last are full.
class PageList {
 public:
  explicit PageList(const std::shared_ptr<MemoryCounter>& counter);
  // Shares every page, open ones too.
  PageList(const PageList& other);
  PageList(PageList&& other) noexcept;
  PageList& operator=(PageList other) noexcept;
  ~PageList();

  std::span<const PageView> views() const { return views_; }
  int rows() const {
    return views_.empty() ? 0
                          : static_cast<int>(views_.size() - 1) * kPageTokens + views_.back().rows;
  }
  int full_pages() const { return rows() / kPageTokens; }

  // Adds n rows, whose bytes are for the caller to write before anybody reads them; new pages have
  // page_bytes bytes and belong to `basis`. A shared last page is copied first. Throws
  // CapacityError, and nothing has changed.
  void grow(int n, size_t page_bytes, int basis);
  // A page that holds rows of the latest grow().
  std::byte* writable(size_t page);
  // Whether the page is in no other list.
  bool is_own(size_t page) const { return !is_shared(views_[page]); }
  // Puts other bytes, which are no more, in the place of a page. Throws CapacityError, and nothing
  // has changed; never for a limit where the page is in no other list.
  void replace(size_t page, std::span<const std::byte> bytes, int basis);
  void truncate(int n_rows) noexcept;
  void drop_front(int n_pages) noexcept;
  // The numbers of bases fall by n.
  void renumber_bases(int n) noexcept;

  // Reference counts and the array of views.
  size_t meta_bytes() const;

 private:
  PageView new_page(size_t bytes, int basis);
  PageView empty_page(std::byte* block, size_t bytes, int basis) const;
  void release(const PageView& page) noexcept;
  SlabPool::Holders& holders(const PageView& page) const {
    return counter_->holders(page.data, static_cast<size_t>(page.bytes));
  }
  bool is_shared(const PageView& page) const {
    return holders(page).load(std::memory_order_acquire) != 1;
  }
  void own_last();

  MemoryCounter* counter_;  // kept alive by the allocator of views_
  CountedVector<PageView> views_;
};

}  // namespace kve
