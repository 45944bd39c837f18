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

int SideCache::last_to_lower(int tier, int n_rows) const {
  if (tier + 1 >= n_tiers()) return -1;
  const int age = setup_.spec.older[static_cast<size_t>(tier)].age;
  // Pages before this one lie more than `age` behind the newest row.
  const int end = std::max(0, n_rows - 1 - age - sink_rows()) / kPageTokens;
  const int page = std::min(end, pages_.full_pages()) - 1;
  return page >= 0 && tier_of(page) == tier ? page : -1;
}

int SideCache::first_own(int tier) const {
  if (tier + 1 >= n_tiers()) return -1;
  for (int page = 0; page < pages_.full_pages(); ++page) {
    if (tier_of(page) == tier && pages_.is_own(static_cast<size_t>(page))) return page;
  }
  return -1;
}

double SideCache::ripeness(int page, int n_rows) const {
  const int age = setup_.spec.older[static_cast<size_t>(tier_of(page))].age;
  return static_cast<double>(n_rows - sink_rows() - (page + 1) * kPageTokens) / age;
}

int SideCache::rows_until_lowered(int n_rows) const {
  int least = INT32_MAX;
  for (const TierSpec& tier : setup_.spec.older) {
    const int past = n_rows - 1 - tier.age - sink_rows();
    const int next = past < 0 ? kPageTokens : (past / kPageTokens + 1) * kPageTokens;
    least = std::min(least, next - past);
  }
  return least;
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
  for (int tier = 0; tier + 1 < static_cast<int>(kMaxTiers); ++tier) {
    std::vector<OldPage> found;
    for (LayerCache& layer : layers) {
      layer.each_side([&](SideCache& side, int) {
        int page = side.last_to_lower(tier, n_committed - layer.first_pos);
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
  double ripest = -1;
  std::vector<OldPage> found;
  for (LayerCache& layer : layers) {
    const int n_rows = n_tokens - layer.first_pos;
    layer.each_side([&](SideCache& side, int) {
      for (int tier = 0; tier + 1 < static_cast<int>(kMaxTiers); ++tier) {
        const int page = side.first_own(tier);
        if (page < 0) continue;
        const double ripeness = side.ripeness(page, n_rows);
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
