#include "kernels/cuda/page_tables.h"

#include <algorithm>

namespace kve::cuda {
namespace {

// Of several caches; then those that are gone go, with the others.
constexpr size_t kMostTables = 1 << 14;

}  // namespace

void PageTables::clear() {
  for (auto& [views, table] : tables_) {
    if (table.device == nullptr) continue;
    device_.release(reinterpret_cast<std::byte*>(table.device), table.room * sizeof(std::byte*));
  }
  tables_.clear();
}

void PageTables::grow(Table* table, size_t n) {
  const size_t room = n + n / 4 + 16;
  auto* memory = reinterpret_cast<const std::byte**>(device_.allocate(room * sizeof(std::byte*)));
  if (table->device != nullptr) {
    device_.release(reinterpret_cast<std::byte*>(table->device), table->room * sizeof(std::byte*));
  }
  table->device = memory;
  table->room = room;
  table->pages.clear();
}

void PageTables::begin() {
  if (generation_ == twins_.generation() && tables_.size() < kMostTables) return;
  device_.synchronize();
  clear();
  generation_ = twins_.generation();
}

const std::byte* const* PageTables::find(std::span<const PageView> pages) {
  Table& table = tables_[pages.data()];
  if (pages.size() > table.room) grow(&table, pages.size());
  const size_t known = std::min(table.pages.size(), pages.size());
  size_t same = 0;
  while (same < known && table.pages[same] == pages[same].data) ++same;
  table.pages.resize(pages.size());
  changed_.clear();
  Twin block;  // of the page before: there are many to a block
  for (size_t i = same; i < pages.size(); ++i) {
    table.pages[i] = pages[i].data;
    if (!block.has(pages[i].data)) block = twins_.find(pages[i].data);
    changed_.push_back(block.at(pages[i].data));
  }
  if (!changed_.empty()) {
    device_.upload(table.device + same, changed_.data(), changed_.size() * sizeof(std::byte*));
  }
  return table.device;
}

}  // namespace kve::cuda
