#include "kernels/cuda/staging.h"

#include <cstring>

#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

// Spilled pages, each filled with its number, that tasks read.
class CudaStaging : public CudaTest {
 protected:
  static constexpr size_t kBytes = 1000;
  static constexpr size_t kPages = 12;
  using Tasks = std::vector<std::vector<size_t>>;  // the pages of each

  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    memory_ = std::make_unique<TwinMemory>(device(), 1);
    for (size_t i = 0; i < kPages; ++i) {
      pages_.push_back(memory_->allocate_pages(kBytes, 64));
      fill(i, static_cast<int>(i));
    }
    out_ = std::make_unique<DeviceArray<std::byte>>(device(), kPages * kBytes);
  }
  void TearDown() override {
    out_.reset();
    for (std::byte* page : pages_) memory_->release(page, kBytes, 64);
    memory_.reset();
  }
  void fill(size_t page, int value) {
    std::memset(pages_[page], value, kBytes);
    memory_->send(pages_[page], kBytes);
    values_.resize(kPages);
    values_[page] = value;
  }

  // Reads a task's pages, as attention would.
  void run(Staging& staging, const std::vector<size_t>& task) {
    staging.begin_task();
    std::vector<const std::byte*> at;
    for (const size_t page : task) {
      at.push_back(staging.add(memory_->find(pages_[page]).at(pages_[page]), kBytes));
    }
    staging.finish_task();
    for (const std::byte* from : at) device().copy(out_->data() + n_read_++ * kBytes, from, kBytes);
  }
  void expect(const Tasks& tasks) {
    const std::vector<std::byte> found = out_->host();
    size_t n = 0;
    for (const std::vector<size_t>& task : tasks) {
      for (const size_t page : task) {
        EXPECT_EQ(found[n * kBytes], static_cast<std::byte>(values_[page])) << page;
        EXPECT_EQ(found[n * kBytes + kBytes - 1], static_cast<std::byte>(values_[page])) << page;
        ++n;
      }
    }
  }
  void pass(Staging& staging, const Tasks& tasks) {
    device().begin_pass();
    staging.begin_pass();
    n_read_ = 0;
    for (const std::vector<size_t>& task : tasks) run(staging, task);
    device().end_pass();
    expect(tasks);
  }

  std::unique_ptr<TwinMemory> memory_;
  std::vector<std::byte*> pages_;
  std::vector<int> values_;
  std::unique_ptr<DeviceArray<std::byte>> out_;
  size_t n_read_ = 0;
};

TEST_P(CudaStaging, PagesOfTheNextTaskAreThereInTime) {
  Staging staging(device(), *memory_, 4096);
  const Tasks tasks{{0, 1, 2}, {3, 4}, {}, {5, 6, 7}, {8}};
  pass(staging, tasks);
  EXPECT_EQ(staging.in_time(), 0);
  EXPECT_EQ(staging.late(), 4);
  for (int64_t n = 1; n < 5; ++n) {
    pass(staging, tasks);
    EXPECT_EQ(staging.in_time(), 4 * n);
  }
  EXPECT_EQ(staging.late(), 4);
  // One is the first of its kind, and the one after that differs in nothing.
  EXPECT_GE(device().replays(), 2);
}

TEST_P(CudaStaging, TasksThatDifferGetTheirPages) {
  Staging staging(device(), *memory_, 4096);
  pass(staging, {{0, 1}, {2, 3}, {4, 5}});
  pass(staging, {{0, 1}, {6, 3}, {4, 5}});
  EXPECT_EQ(staging.in_time(), 2);
  EXPECT_EQ(staging.late(), 4);
  pass(staging, {{1}});
  pass(staging, {{1}, {2, 3}, {4, 5}, {7}});
  EXPECT_EQ(staging.in_time(), 3);
  pass(staging, {{1}, {2, 3}, {4, 5}, {7}});
  EXPECT_EQ(staging.in_time(), 7);
}

// The copy may come before or after the change: it is made anew.
TEST_P(CudaStaging, PagesThatChangeAreReadAsTheyAre) {
  Staging staging(device(), *memory_, 4096);
  const Tasks tasks{{0, 1}, {2, 3}};
  for (int n = 0; n < 3; ++n) {
    device().begin_pass();
    staging.begin_pass();
    n_read_ = 0;
    run(staging, tasks[0]);
    fill(2, 100 + n);
    run(staging, tasks[1]);
    device().end_pass();
    expect(tasks);
  }
  EXPECT_EQ(staging.in_time(), 2);
  fill(0, 50);
  pass(staging, tasks);
  EXPECT_EQ(staging.in_time(), 4);
}

TEST_P(CudaStaging, PagesWithoutRoomAreReadWhereTheyLie) {
  Staging staging(device(), *memory_, 2048);
  const Tasks tasks{{0, 1, 2, 3}, {4, 5, 6}};
  for (int n = 0; n < 3; ++n) pass(staging, tasks);
  EXPECT_EQ(staging.in_time(), 4);
  staging.begin_task();
  const std::byte* page = memory_->find(pages_[9]).at(pages_[9]);
  EXPECT_NE(staging.add(page, kBytes), page);
  EXPECT_NE(staging.add(page, kBytes), page);
  EXPECT_EQ(staging.add(page, kBytes), page);
}

TEST_P(CudaStaging, ForgetsPagesThatAreGone) {
  Staging staging(device(), *memory_, 4096);
  const Tasks tasks{{10, 1}, {2, 11}};
  for (int n = 0; n < 2; ++n) pass(staging, tasks);
  memory_->release(pages_[11], kBytes, 64);
  memory_->rearrange();
  pages_[11] = memory_->allocate_pages(kBytes, 64);
  fill(11, 77);
  pass(staging, tasks);
  EXPECT_EQ(staging.in_time(), 2);
  EXPECT_EQ(staging.late(), 4);
}

// Outside of a pass nothing is known of what follows.
TEST_P(CudaStaging, ServesSingleOperations) {
  Staging staging(device(), *memory_, 4096);
  const Tasks tasks{{0, 1}, {2, 3}, {2, 3}};
  for (const std::vector<size_t>& task : tasks) run(staging, task);
  expect(tasks);
  EXPECT_EQ(staging.late(), 3);
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaStaging, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
