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
    device_.release(reinterpret_cast<std::byte*>(table.device), table.room * sizeof(PagePlace));
  }
  tables_.clear();
}

void PageTables::grow(Table* table, size_t n) {
  const size_t room = n + n / 4 + 16;
  auto* memory = reinterpret_cast<PagePlace*>(device_.allocate(room * sizeof(PagePlace)));
  if (table->device != nullptr) {
    device_.release(reinterpret_cast<std::byte*>(table->device), table->room * sizeof(PagePlace));
  }
  table->device = memory;
  table->room = room;
  table->pages.clear();
}

void PageTables::begin() {
  if (generation_ == twins_.generation() && tables_.size() < kMostTables) return;
  device_.synchronize();
  clear();
  staging_.clear();
  generation_ = twins_.generation();
}

// Has the table's spilled pages copied, of which those before page `same` are known. Returns the
// first page that is elsewhere than the device knows.
size_t PageTables::find_spilled(std::span<const PageView> pages, size_t same, Table* table) {
  std::vector<SpilledPage>& spilled = table->spilled;
  std::vector<BlockOfPages>& blocks = table->blocks;
  while (!spilled.empty() && spilled.back().number >= same) spilled.pop_back();
  while (!blocks.empty() && blocks.back().first_page >= same) blocks.pop_back();
  Twin block;
  for (size_t i = same; i < pages.size(); ++i) {
    if (!block.has(pages[i].data)) {
      block = twins_.find(pages[i].data);
      blocks.push_back({i, block.read});
    }
    if (!block.spilled) continue;
    const auto bytes = static_cast<size_t>(pages[i].bytes);
    spilled.push_back({i, block.at(pages[i].data), bytes, nullptr});
  }
  for (const BlockOfPages& of_pages : blocks) {
    if (of_pages.read != nullptr) of_pages.read->store(twins_.age(), std::memory_order_relaxed);
  }
  size_t first = pages.size();
  for (SpilledPage& page : spilled) {
    const std::byte* at = staging_.add(page.from, page.bytes);
    if (at != page.at) first = std::min(first, page.number);
    page.at = at;
  }
  return first;
}

const PagePlace* PageTables::find(std::span<const PageView> pages, const PageAnchors& anchors) {
  Table& table = tables_[pages.data()];
  if (pages.size() > table.room) grow(&table, pages.size());
  const auto place_of = [&](size_t i) {
    return PagePlace{pages[i].data, pages[i].basis, anchors.of(i)};
  };
  const size_t known = std::min(table.pages.size(), pages.size());
  size_t same = 0;
  if (table.anchors.same(anchors)) {
    // There are many pages, and in most steps nothing is new.
    const PagePlace* places = table.pages.data();
    const auto goes_on = [&](size_t i) {
      return places[i].data == pages[i].data && places[i].kind == pages[i].basis;
    };
    while (same < known && goes_on(same)) ++same;
  } else {
    while (same < known && table.pages[same] == place_of(same)) ++same;
  }
  table.anchors = anchors;
  table.pages.resize(pages.size());
  if (twins_.is_limited()) same = std::min(same, find_spilled(pages, same, &table));
  auto spilled = std::ranges::lower_bound(table.spilled, same, {}, &SpilledPage::number);
  changed_.clear();
  Twin block;  // of the page before: there are many to a block
  for (size_t i = same; i < pages.size(); ++i) {
    table.pages[i] = place_of(i);
    if (!block.has(pages[i].data)) block = twins_.find(pages[i].data);
    changed_.push_back(table.pages[i]);
    changed_.back().data = block.at(pages[i].data);
    if (spilled == table.spilled.end() || spilled->number != i) continue;
    changed_.back().data = (spilled++)->at;
  }
  if (!changed_.empty()) {
    device_.upload(table.device + same, changed_.data(), changed_.size() * sizeof(PagePlace));
  }
  return table.device;
}

}  // namespace kve::cuda
