// Jobs that lie in memory in the order in which they are numbered, shared among threads so that
// each reads one stretch of it: every lane has neighbouring jobs and works from its front; a lane
// that has none left takes from the back of another. Who does a job must not change its result.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace kve {

class JobLanes {
 public:
  // Jobs [0, n) with costs, in n_lanes stretches of about the same cost.
  template <class Cost>
  void assign(int64_t n, int n_lanes, const Cost& cost) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += static_cast<double>(cost(i));
    ranges_.assign(static_cast<size_t>(n_lanes) * kStride, 0);
    double done = 0;
    int64_t job = 0;
    for (int lane = 0; lane < n_lanes; ++lane) {
      const int64_t first = job;
      const double end = total * (lane + 1) / n_lanes;
      for (; job < n; ++job) {
        const auto own = static_cast<double>(cost(job));
        if (lane + 1 < n_lanes && done + own / 2 > end) break;
        done += own;
      }
      range(lane) = pack(first, job);
    }
  }

  int size() const { return static_cast<int>(ranges_.size() / kStride); }

  // The job that a lane will probably do next; -1: none of its own.
  int64_t peek(int lane) {
    const uint64_t seen = std::atomic_ref<uint64_t>(range(lane)).load(std::memory_order_relaxed);
    return seen >> 32 < (seen & UINT32_MAX) ? static_cast<int64_t>(seen >> 32) : -1;
  }
  // The next job of a lane, or of another one; -1: all are taken.
  int64_t take(int lane) {
    const int64_t own = take_front(lane);
    if (own >= 0) return own;
    for (int i = 1; i < size(); ++i) {
      const int64_t other = take_back((lane + i) % size());
      if (other >= 0) return other;
    }
    return -1;
  }

 private:
  static constexpr size_t kStride = 8;  // of ranges_: lanes share no cache line

  static uint64_t pack(int64_t first, int64_t end) {
    return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(end);
  }
  uint64_t& range(int lane) { return ranges_[static_cast<size_t>(lane) * kStride]; }

  int64_t take_front(int lane) {
    std::atomic_ref<uint64_t> at(range(lane));
    uint64_t seen = at.load(std::memory_order_relaxed);
    while (seen >> 32 < (seen & UINT32_MAX)) {
      if (at.compare_exchange_weak(seen, seen + (uint64_t{1} << 32), std::memory_order_relaxed)) {
        return static_cast<int64_t>(seen >> 32);
      }
    }
    return -1;
  }
  int64_t take_back(int lane) {
    std::atomic_ref<uint64_t> at(range(lane));
    uint64_t seen = at.load(std::memory_order_relaxed);
    while (seen >> 32 < (seen & UINT32_MAX)) {
      if (at.compare_exchange_weak(seen, seen - 1, std::memory_order_relaxed)) {
        return static_cast<int64_t>((seen & UINT32_MAX) - 1);
      }
    }
    return -1;
  }

  std::vector<uint64_t> ranges_;  // of each lane: first << 32 | end
};

}  // namespace kve
