#include "cache/page_bounds.h"

#include <cstring>

#include "base/error.h"

namespace kve {
namespace {

// A number that orders as the half does, and back.
int16_t ordered(uint16_t half) {
  const auto bits = static_cast<int16_t>(half);
  return static_cast<int16_t>(bits ^ ((bits >> 15) & 0x7fff));
}

bool is_finite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

// rows [n, dim] to out [2 * dim].
void bound_rows(const uint16_t* rows, int n, int dim, uint16_t* out) {
  const auto width = static_cast<size_t>(dim);
  uint16_t* most = out;
  uint16_t* least = out + width;
  std::copy_n(rows, width, most);
  std::copy_n(rows, width, least);
  for (int r = 1; r < n; ++r) {
    const uint16_t* row = rows + static_cast<size_t>(r) * width;
    for (size_t c = 0; c < width; ++c) {
      const int16_t value = ordered(row[c]);
      most[c] = value > ordered(most[c]) ? row[c] : most[c];
      least[c] = value < ordered(least[c]) ? row[c] : least[c];
    }
  }
}

}  // namespace

HeadBounds::HeadBounds(const PageGrid& grid, int dim, const std::shared_ptr<MemoryCounter>& counter)
    : grid_(grid), dim_(dim), halves_(CountedAllocator<uint16_t>(counter)) {}

void HeadBounds::reserve(int n_rows) {
  const auto width = static_cast<size_t>(this->width());
  const size_t needed = static_cast<size_t>(grid_.whole(n_rows)) * width;
  if (needed <= halves_.capacity()) return;
  halves_.reserve(needed + (needed / width / 8 + 4) * width);
}

void HeadBounds::extend(const SideCache& keys, int head, RowPositions positions, Scratch* scratch) {
  const int n_pages = grid_.whole(keys.rows());
  // Of several pages, those of one page of the cache are read together.
  const int together = kPageTokens / grid_.size;
  const auto width = static_cast<size_t>(this->width());
  while (pages() < n_pages) {
    const int first = pages();
    const int end = std::min(n_pages, first + together);
    const int row = grid_.begin(first);
    const int n = grid_.end(end - 1) - row;
    auto* rows = scratch->get<uint16_t>(static_cast<size_t>(n) * static_cast<size_t>(dim_));
    keys.read_halves(head, row, n, positions, rows);
    KVE_ASSERT(static_cast<size_t>(end) * width <= halves_.capacity());
    halves_.resize(static_cast<size_t>(end) * width);
    for (int page = first; page < end; ++page) {
      const int begin = grid_.begin(page);
      bound_rows(rows + static_cast<ptrdiff_t>(begin - row) * dim_, grid_.end(page) - begin, dim_,
                 halves_.data() + static_cast<size_t>(page) * width);
    }
  }
}

void HeadBounds::truncate(int n_rows) noexcept {
  const size_t kept = static_cast<size_t>(grid_.whole(n_rows)) * static_cast<size_t>(width());
  if (kept < halves_.size()) halves_.resize(kept);
}

bool HeadBounds::restore(std::span<const std::byte> bytes) {
  halves_.resize(bytes.size() / sizeof(uint16_t));
  if (!bytes.empty()) std::memcpy(halves_.data(), bytes.data(), bytes.size());
  for (int page = 0; page < pages(); ++page) {
    const uint16_t* most = halves_.data() + static_cast<ptrdiff_t>(page) * width();
    const uint16_t* least = most + dim_;
    for (int c = 0; c < dim_; ++c) {
      if (!is_finite(most[c]) || !is_finite(least[c]) || ordered(least[c]) > ordered(most[c])) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace kve
