#include "cache/page.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace kve {
PageList::PageList(const std::shared_ptr<MemoryCounter>& counter)
    : counter_(counter.get()), views_(CountedAllocator<PageView>(counter)) {}

PageList::PageList(const PageList& other) : counter_(other.counter_), views_(other.views_) {
  for (const PageView& view : views_) holders(view).fetch_add(1, std::memory_order_relaxed);
}

PageList::PageList(PageList&& other) noexcept
    : counter_(other.counter_), views_(std::move(other.views_)) {}

PageList& PageList::operator=(PageList other) noexcept {
  std::swap(counter_, other.counter_);
  views_.swap(other.views_);
  return *this;
}

PageList::~PageList() { truncate(0); }

PageView PageList::new_page(size_t bytes, int basis) {
  return empty_page(counter_->allocate_block(bytes), bytes, basis);
}

PageView PageList::empty_page(std::byte* page, size_t bytes, int basis) const {
  // What no row writes (places past the end of a row, padding) is saved as well.
  counter_->source().zero(page, bytes);
  return {page, static_cast<int32_t>(bytes), 0, static_cast<int16_t>(basis)};
}

void PageList::release(const PageView& page) noexcept {
  // The last holder must see all that others did with the page before they let go of it.
  if (holders(page).fetch_sub(1, std::memory_order_acq_rel) == 1) {
    counter_->release_block(const_cast<std::byte*>(page.data), static_cast<size_t>(page.bytes));
  }
}

// Makes the last page one that only this list holds.
void PageList::own_last() {
  PageView& last = views_.back();
  if (!is_shared(last)) return;
  PageView copy = new_page(static_cast<size_t>(last.bytes), last.basis);
  counter_->source().copy(const_cast<std::byte*>(copy.data), last.data,
                          static_cast<size_t>(last.bytes));
  copy.rows = last.rows;
  release(last);
  last = copy;
}

void PageList::grow(int n, size_t page_bytes, int basis) {
  const int before = rows();
  const int first_room = (kPageTokens - before % kPageTokens) % kPageTokens;
  const int in_last = std::min(n, first_room);
  if (in_last > 0) own_last();
  const size_t added = static_cast<size_t>((n - in_last + kPageTokens - 1) / kPageTokens);
  const size_t needed = views_.size() + added;
  if (needed > views_.capacity()) {
    // Tables seldom grow, and what they have room for counts.
    views_.reserve(std::max(needed, views_.capacity() + views_.capacity() / 32 + 2));
  }
  if (in_last > 0) views_.back().rows = static_cast<int16_t>(views_.back().rows + in_last);
  try {
    for (int left = n - in_last; left > 0; left -= kPageTokens) {
      views_.push_back(new_page(page_bytes, basis));
      views_.back().rows = static_cast<int16_t>(std::min(left, kPageTokens));
    }
  } catch (...) {
    truncate(before);
    throw;
  }
}

void PageList::replace(size_t page, std::span<const std::byte> bytes, int basis) {
  PageView& view = views_[page];
  PageView fresh;
  if (is_shared(view)) {
    fresh = new_page(bytes.size(), basis);
    release(view);
  } else {
    std::byte* block = counter_->exchange_block(const_cast<std::byte*>(view.data),
                                                static_cast<size_t>(view.bytes), bytes.size());
    fresh = empty_page(block, bytes.size(), basis);
  }
  counter_->source().copy(const_cast<std::byte*>(fresh.data), bytes.data(), bytes.size());
  fresh.rows = view.rows;
  view = fresh;
}

std::byte* PageList::writable(size_t page) {
  KVE_ASSERT(!is_shared(views_[page]));
  return const_cast<std::byte*>(views_[page].data);
}

void PageList::truncate(int n_rows) noexcept {
  const size_t kept = static_cast<size_t>((n_rows + kPageTokens - 1) / kPageTokens);
  while (views_.size() > kept) {
    release(views_.back());
    views_.pop_back();
  }
  if (kept > 0 && views_.size() == kept) {
    PageView& last = views_.back();
    const int left = n_rows - static_cast<int>(kept - 1) * kPageTokens;
    last.rows = static_cast<int16_t>(std::min<int>(last.rows, left));
  }
}

void PageList::drop_front(int n_pages) noexcept {
  const auto end = views_.begin() + n_pages;
  for (auto view = views_.begin(); view != end; ++view) release(*view);
  views_.erase(views_.begin(), end);
}

void PageList::renumber_bases(int n) noexcept {
  for (PageView& view : views_) view.basis = static_cast<int16_t>(view.basis - n);
}

size_t PageList::meta_bytes() const {
  return views_.size() * sizeof(SlabPool::Holders) + views_.capacity() * sizeof(PageView);
}

}  // namespace kve
