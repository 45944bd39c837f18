// The smallest and the largest of each channel of some neighbouring keys, from which Quest
// (arXiv 2406.10774) tells how high they may score.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "base/memory.h"
#include "cache/side_cache.h"

namespace kve {

// How rows are split into pages of a selector, which are smaller than those of the cache, or the
// same: they begin where positions exceed a multiple of `size` by as much as the cache's do, so
// that each lies within one of these.
struct PageGrid {
  PageGrid(int size_, int sinks) : size(size_), lead((size_ - sinks % size_) % size_) {}

  int begin(int page) const { return std::max(0, page * size - lead); }
  int end(int page) const { return (page + 1) * size - lead; }
  // Pages of which all rows are before row n.
  int whole(int n) const { return (n + lead) / size; }

  int size;
  int lead;  // rows that the first page lacks
};

// Of the keys of one kv head.
class HeadBounds {
 public:
  HeadBounds(const PageGrid& grid, int dim, const std::shared_ptr<MemoryCounter>& counter);

  const PageGrid& grid() const { return grid_; }
  int width() const { return 2 * dim_; }
  int pages() const { return static_cast<int>(halves_.size()) / width(); }
  // f16 [pages(), width()]: the largest values of all channels, then the smallest.
  const uint16_t* data() const { return halves_.data(); }
  size_t bytes() const { return halves_.capacity() * sizeof(uint16_t); }

  // Makes room for the pages that `n_rows` rows fill. Throws CapacityError.
  void reserve(int n_rows);
  // Adds the pages that the rows of a side now fill, as they are stored, in binary16. Only memory
  // that was reserved is used, and `scratch`.
  void extend(const SideCache& keys, int head, RowPositions positions, Scratch* scratch);
  // Forgets pages with rows from n_rows on.
  void truncate(int n_rows) noexcept;
  // For kv_cache_io: bounds of some pages, of which each must be finite and none above its other.
  bool restore(std::span<const std::byte> bytes);

 private:
  PageGrid grid_;
  int dim_;
  CountedVector<uint16_t> halves_;
};

}  // namespace kve
