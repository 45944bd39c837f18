#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <stdexcept>

#include "base/error.h"

namespace kve {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const int64_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(n));
      pool.parallel(n, [&](int64_t i) { runs[static_cast<size_t>(i)].fetch_add(1); });
      for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, ManyShortJobs) {
  ThreadPool pool(4);
  std::vector<int64_t> sums(16);
  for (int round = 0; round < 3000; ++round) {
    pool.parallel(16, [&](int64_t i) { sums[static_cast<size_t>(i)] += i; });
  }
  for (size_t i = 0; i < sums.size(); ++i) EXPECT_EQ(sums[i], 3000 * static_cast<int64_t>(i));
}

TEST(ThreadPool, AsksAheadForAnythingAtAll) {
  ThreadPool pool(3);
  const std::vector<std::byte> memory(1000);
  const Stretch stretches[] = {
      {memory.data(), memory.size()}, {}, {memory.data(), 1}, {nullptr, 100}, {memory.data(), 0}};
  std::atomic<int64_t> runs{0};
  for (int round = 0; round < 500; ++round) {
    for (int thread = 0; thread < pool.size(); ++thread) {
      pool.ask_ahead(thread, stretches[(round + thread) % 5]);
    }
    pool.parallel(7, [&](int64_t) { runs.fetch_add(1, std::memory_order_relaxed); });
  }
  EXPECT_EQ(runs.load(), 500 * 7);
}

TEST(ThreadPool, WakesWorkersThatSleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::atomic<int> runs{0};
    pool.parallel(10, [&](int64_t) { runs.fetch_add(1); });
    EXPECT_EQ(runs.load(), 10);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // longer than workers spin
  }
}

TEST(ThreadPool, NumbersItsThreads) {
  ThreadPool pool(4);
  // A thread's number belongs to it alone: unsynchronised counters per number add up.
  std::vector<int64_t> counts(4 * 64);
  for (int round = 0; round < 500; ++round) {
    pool.parallel(64, [&](int64_t, int thread) {
      ASSERT_GE(thread, 0);
      ASSERT_LT(thread, 4);
      ++counts[static_cast<size_t>(thread) * 64];
    });
  }
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), 500 * 64);
}

TEST(ThreadPool, RethrowsTheFirstExceptionAndGoesOn) {
  for (const int threads : {1, 2, 8}) {
    ThreadPool pool(threads);
    const auto failing = [&] {
      pool.parallel(100, [](int64_t i) {
        if (i == 3) throw std::runtime_error("task 3");
      });
    };
    for (int round = 0; round < 50; ++round) {
      EXPECT_THROW(failing(), std::runtime_error);
      std::atomic<int64_t> total{0};
      pool.parallel(100, [&](int64_t i) { total.fetch_add(i); });
      EXPECT_EQ(total.load(), 4950);
    }
  }
}

TEST(ThreadPool, ConcurrentCallersTakeTurns) {
  ThreadPool pool(3);
  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        int64_t mine[32] = {};
        pool.parallel(32, [&](int64_t i) { mine[i] = i; });
        total.fetch_add(std::accumulate(std::begin(mine), std::end(mine), int64_t{0}));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total.load(), 4 * 100 * 496);
}

TEST(ThreadPool, RefusesBadSizes) {
  EXPECT_THROW(ThreadPool(0), ConfigError);
  EXPECT_THROW(ThreadPool(-1), ConfigError);
  EXPECT_THROW(ThreadPool(100000), ConfigError);
  EXPECT_GE(default_thread_count(), 1);
}

}  // namespace
}  // namespace kve
