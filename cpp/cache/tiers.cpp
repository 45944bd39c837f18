// Age tiers: old pages are coded anew in fewer bits, with age or when memory runs out.
//
// A page is decoded to the numbers it holds (coefficients, where its rows have a basis) and these
// are coded in the format of the next tier, one tier at a time: what a cache holds does not depend
// on how its rows came. The new bytes replace the old ones at once, not when the pass succeeds.
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "cache/kv_cache_state.h"

namespace kve {
namespace {

// Pages that are coded anew together: enough for threads, and few bytes that exist twice.
constexpr size_t kTogether = 16;

struct OldPage {
  SideCache* side;
  int page;
};

// Throws CapacityError for a page of several lists; those before it have gone down.
void lower_pages(Backend& backend, std::span<const OldPage> pages) {
  Scratch memory;
  for (size_t first = 0; first < pages.size(); first += kTogether) {
    const std::span<const OldPage> some =
        pages.subspan(first, std::min(kTogether, pages.size() - first));
    std::vector<SealJob> jobs;
    std::vector<size_t> begins = {0};
    for (const OldPage& old : some) {
      jobs.push_back(old.side->lowering_job(old.page, nullptr));
      const size_t bytes = page_bytes(jobs.back().format);
      begins.push_back(begins.back() + (bytes + kCacheLine - 1) / kCacheLine * kCacheLine);
    }
    auto* staged = memory.get<std::byte>(begins.back());
    std::memset(staged, 0, begins.back());
    for (size_t i = 0; i < jobs.size(); ++i) jobs[i].page = staged + begins[i];
    if (backend.seal(jobs) >= 0) {
      throw Error("cache: the backend refused to code the values of a page anew");
    }
    for (size_t i = 0; i < jobs.size(); ++i) {
      some[i].side->lower(some[i].page, {jobs[i].page, page_bytes(jobs[i].format)});
    }
  }
}

}  // namespace

int SideCache::tier_of(int page) const {
  return pages_.views()[static_cast<size_t>(page)].basis % n_tiers();
}

int SideCache::first_younger(int age, RowPositions positions, int64_t newest) const {
  int first = 0;
  int end = pages_.full_pages();
  while (first < end) {
    const int middle = first + (end - first) / 2;
    if (newest - last_position(middle, positions) > age) {
      first = middle + 1;
    } else {
      end = middle;
    }
  }
  return first;
}

int SideCache::last_to_lower(int tier, RowPositions positions, int64_t newest) const {
  if (tier + 1 >= n_tiers()) return -1;
  const int age = setup_.spec.older[static_cast<size_t>(tier)].age;
  const int page = first_younger(age, positions, newest) - 1;
  return page >= 0 && tier_of(page) == tier ? page : -1;
}

int SideCache::first_own(int tier) const {
  if (tier + 1 >= n_tiers()) return -1;
  for (int page = 0; page < pages_.full_pages(); ++page) {
    if (tier_of(page) == tier && pages_.is_own(static_cast<size_t>(page))) return page;
  }
  return -1;
}

double SideCache::ripeness(int page, RowPositions positions, int64_t newest) const {
  const int age = setup_.spec.older[static_cast<size_t>(tier_of(page))].age;
  return static_cast<double>(newest - last_position(page, positions)) / age;
}

int64_t SideCache::last_position(int page, RowPositions positions) const {
  const int64_t row = sink_rows() + int64_t{page + 1} * kPageTokens - 1;
  if (row < rows()) return positions.of(row);
  // Of tokens that will come.
  return rows() == 0 ? row : positions.of(rows() - 1) + row - rows() + 1;
}

int SideCache::tokens_until_lowered(RowPositions positions, int64_t newest) const {
  int64_t least = INT32_MAX;
  for (const TierSpec& tier : setup_.spec.older) {
    const auto tokens = [&](int page) {
      return last_position(page, positions) + tier.age + 1 - newest;
    };
    int page = first_younger(tier.age, positions, newest);
    while (tokens(page) <= 0) ++page;  // it waits in the tail
    least = std::min(least, tokens(page));
  }
  return static_cast<int>(least);
}

SealJob SideCache::lowering_job(int page, std::byte* to) const {
  const PageView& view = pages_.views()[static_cast<size_t>(page)];
  SealJob job;
  job.format = format(view.basis + 1);
  job.n_rows = view.rows;
  job.page = to;
  job.coded = view.data;
  job.coded_format = format(view.basis);
  return job;
}

void SideCache::lower(int page, std::span<const std::byte> bytes) {
  const auto index = static_cast<size_t>(page);
  pages_.replace(index, bytes, pages_.views()[index].basis + 1);
}

void KvCache::State::lower_aged(Backend& backend, int n_committed) {
  const int64_t newest = int64_t{n_committed} - next_shift - 1;
  for (int tier = 0; tier + 1 < static_cast<int>(kMaxTiers); ++tier) {
    std::vector<OldPage> found;
    for (size_t i = 0; i < layers.size(); ++i) {
      LayerRows* rows = rows_of(i);
      rows->each_side([&](SideCache& side, int head) {
        int page = side.last_to_lower(tier, rows->positions(head), newest);
        for (; page >= 0 && side.tier_of(page) == tier; --page) found.push_back({&side, page});
      });
    }
    try {
      lower_pages(backend, found);
    } catch (const CapacityError&) {
      return;
    }
  }
}

bool KvCache::State::lower_oldest(Backend& backend) {
  const int64_t newest = int64_t{n_tokens} - shift - 1;
  double ripest = -1;
  std::vector<OldPage> found;
  for (LayerCache& layer : layers) {
    layer.each_side([&](SideCache& side, int head) {
      for (int tier = 0; tier + 1 < static_cast<int>(kMaxTiers); ++tier) {
        const int page = side.first_own(tier);
        if (page < 0) continue;
        const double ripeness = side.ripeness(page, layer.positions(head), newest);
        if (ripeness < ripest) continue;
        if (ripeness > ripest) found.clear();
        ripest = ripeness;
        found.push_back({&side, page});
      }
    });
  }
  lower_pages(backend, found);
  return !found.empty();
}

}  // namespace kve
