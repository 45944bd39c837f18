// Where the pages of caches are on the device: a table for every side, which stays there from step
// to step, so that what is sent is what has changed.
#pragma once

#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/rotations.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/twin_memory.h"
#include "kernels/page_view.h"

namespace kve::cuda {

// Where the pages of a side are anchored; without angles: nowhere.
struct PageAnchors {
  AnchorAngles angles{};
  const int32_t* positions = nullptr;  // of the rows of pages, null: consecutive from
  int64_t first_position = 0;

  int32_t of(size_t page) const {
    if (angles.rows == nullptr) return 0;
    const auto row = static_cast<int64_t>(page) * kPageTokens;
    return angles.row_of(positions != nullptr ? positions[row] : first_position + row);
  }
  // Whether of() gives the same for all pages, as far as that can be told without asking for them.
  bool same(const PageAnchors& other) const {
    return positions == nullptr && other.positions == nullptr &&
           (angles.rows == nullptr) == (other.angles.rows == nullptr) &&
           angles.offset == other.angles.offset && angles.step == other.angles.step &&
           first_position == other.first_position;
  }
};

class PageTables {
 public:
  // All outlive the tables.
  PageTables(Device& device, const TwinMemory& twins, Staging& staging)
      : device_(device), twins_(twins), staging_(staging) {}
  PageTables(const PageTables&) = delete;
  PageTables& operator=(const PageTables&) = delete;
  ~PageTables() { clear(); }

  // A new operation begins.
  void begin();
  // Of pages that have twins, in device memory: valid until the next operation. Those that are
  // spilled are where Staging says.
  const PagePlace* find(std::span<const PageView> pages, const PageAnchors& anchors);

 private:
  struct SpilledPage {
    size_t number;
    const std::byte* from;  // in locked memory
    size_t bytes;
    const std::byte* at;  // as the device has been told
  };
  // From a page on there are others than before in this block.
  struct BlockOfPages {
    size_t first_page;
    std::atomic<int64_t>* read;
  };
  struct Table {
    std::vector<PagePlace> pages;  // as the host knows them
    std::vector<SpilledPage> spilled;
    std::vector<BlockOfPages> blocks;  // where there is a limit
    PageAnchors anchors{};
    PagePlace* device = nullptr;
    size_t room = 0;
  };
  void clear();
  void grow(Table* table, size_t n);
  size_t find_spilled(std::span<const PageView> pages, size_t same, Table* table);

  Device& device_;
  const TwinMemory& twins_;
  Staging& staging_;
  uint64_t generation_ = 0;                            // of twins_, that the tables are of
  std::unordered_map<const PageView*, Table> tables_;  // by where a side has its views
  std::vector<PagePlace> changed_;
};

}  // namespace kve::cuda
