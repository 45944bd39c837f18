#include "kernels/cpu/job_lanes.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace kve {
namespace {

TEST(JobLanes, NeighbouringJobsOfAboutTheSameCost) {
  JobLanes lanes;
  const std::vector<int> costs = {4, 1, 1, 1, 1, 4, 4};
  lanes.assign(7, 2, [&](int64_t i) { return costs[static_cast<size_t>(i)]; });
  // 8 of 16 are the first five.
  EXPECT_EQ(lanes.peek(0), 0);
  EXPECT_EQ(lanes.peek(1), 5);
}

TEST(JobLanes, OwnJobsFromTheFrontThenThoseOfOthersFromTheBack) {
  JobLanes lanes;
  lanes.assign(6, 2, [](int64_t) { return 1; });
  EXPECT_EQ(lanes.take(1), 3);
  EXPECT_EQ(lanes.take(1), 4);
  EXPECT_EQ(lanes.take(1), 5);
  EXPECT_EQ(lanes.peek(1), -1);
  EXPECT_EQ(lanes.take(1), 2);
  EXPECT_EQ(lanes.take(0), 0);
  EXPECT_EQ(lanes.take(1), 1);
  EXPECT_EQ(lanes.take(0), -1);
  EXPECT_EQ(lanes.take(1), -1);
}

TEST(JobLanes, NoJobsAndFewerJobsThanLanes) {
  JobLanes lanes;
  lanes.assign(0, 3, [](int64_t) { return 1; });
  for (int lane = 0; lane < 3; ++lane) EXPECT_EQ(lanes.take(lane), -1);
  lanes.assign(1, 3, [](int64_t) { return 1; });
  EXPECT_EQ(lanes.take(2), 0);
  EXPECT_EQ(lanes.take(0), -1);
}

TEST(JobLanes, EveryJobIsTakenOnceByAnyThread) {
  constexpr int kJobs = 20000;
  constexpr int kLanes = 4;
  JobLanes lanes;
  lanes.assign(kJobs, kLanes, [](int64_t i) { return i % 7; });
  std::vector<std::atomic<int>> taken(kJobs);
  std::vector<std::thread> threads;
  for (int lane = 0; lane < kLanes; ++lane) {
    threads.emplace_back([&, lane] {
      for (int64_t i = lanes.take(lane); i >= 0; i = lanes.take(lane)) {
        ++taken[static_cast<size_t>(i)];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::atomic<int>& times : taken) EXPECT_EQ(times, 1);
}

}  // namespace
}  // namespace kve
