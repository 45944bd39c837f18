// Where the pages of caches are on the device: a table for every side, which stays there from step
// to step, so that what is sent is what has changed.
#pragma once

#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/twin_memory.h"
#include "kernels/page_view.h"

namespace kve::cuda {

class PageTables {
 public:
  // Both outlive the tables.
  PageTables(Device& device, const TwinMemory& twins) : device_(device), twins_(twins) {}
  PageTables(const PageTables&) = delete;
  PageTables& operator=(const PageTables&) = delete;
  ~PageTables() { clear(); }

  // A new operation begins.
  void begin();
  // The addresses of pages that have twins, in device memory: valid until the next operation.
  const std::byte* const* find(std::span<const PageView> pages);

 private:
  struct Table {
    std::vector<const std::byte*> pages;  // as the host knows them
    const std::byte** device = nullptr;
    size_t room = 0;
  };
  void clear();
  void grow(Table* table, size_t n);

  Device& device_;
  const TwinMemory& twins_;
  uint64_t generation_ = 0;                            // of twins_, that the tables are of
  std::unordered_map<const PageView*, Table> tables_;  // by where a side has its views
  std::vector<const std::byte*> changed_;
};

}  // namespace kve::cuda
