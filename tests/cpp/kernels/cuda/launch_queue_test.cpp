// Passes that are replayed as a graph, and those that turn out to be others.
#include "kernels/cuda/launch_queue.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_testing.h"
#include "kernels/cuda/elementwise.h"

namespace kve::cuda {
namespace {

class CudaLaunchQueue : public CudaTest {
 protected:
  static constexpr size_t kValues = 64;

  // A pass that adds y to x `times` times, x and y being sent first; gives x.
  std::vector<float> add(const DeviceArray<float>& x, const DeviceArray<float>& y, float value,
                         int times) {
    device().begin_pass();
    const std::vector<float> first(kValues, value);
    const std::vector<float> second(kValues, 10 * value);
    device().upload(x.data(), first.data(), kValues * sizeof(float));
    device().upload(y.data(), second.data(), kValues * sizeof(float));
    for (int i = 0; i < times; ++i) {
      cuda::add(Mat(x.data(), 1, kValues), ConstMat(y.data(), 1, kValues));
    }
    device().end_pass();
    EXPECT_FALSE(device().in_pass());
    return x.host();
  }
  static std::vector<float> expected(float value, int times) {
    return std::vector<float>(kValues, value + static_cast<float>(10 * times) * value);
  }
};

TEST_P(CudaLaunchQueue, ReplaysWhatIsTheSameAndReadsWhatChanged) {
  const DeviceArray<float> x(device(), kValues);
  const DeviceArray<float> y(device(), kValues);
  for (int pass = 0; pass < 5; ++pass) {
    const auto value = static_cast<float>(pass + 1);
    EXPECT_EQ(add(x, y, value, 3), expected(value, 3)) << pass;
    EXPECT_EQ(device().replays(), pass) << pass;
  }
}

TEST_P(CudaLaunchQueue, IssuesWhatDiffers) {
  const DeviceArray<float> x(device(), kValues);
  const DeviceArray<float> y(device(), kValues);
  const DeviceArray<float> other(device(), kValues);
  EXPECT_EQ(add(x, y, 1, 3), expected(1, 3));
  // Longer, shorter, and of other operands from the second operation on.
  EXPECT_EQ(add(x, y, 2, 4), expected(2, 4));
  EXPECT_EQ(add(x, y, 3, 2), expected(3, 2));
  EXPECT_EQ(add(x, other, 4, 3), expected(4, 3));
  EXPECT_EQ(device().replays(), 0);
  // All of them are known now.
  EXPECT_EQ(add(x, y, 5, 2), expected(5, 2));
  EXPECT_EQ(add(x, y, 6, 3), expected(6, 3));
  EXPECT_EQ(add(x, y, 7, 4), expected(7, 4));
  EXPECT_EQ(add(x, other, 8, 3), expected(8, 3));
  EXPECT_EQ(device().replays(), 4);
  // More than are remembered.
  for (int times = 5; times < 20; ++times) EXPECT_EQ(add(x, y, 1, times), expected(1, times));
}

TEST_P(CudaLaunchQueue, GivesResultsWithinAPass) {
  const DeviceArray<float> x(device(), kValues);
  for (int pass = 0; pass < 3; ++pass) {
    const std::vector<float> sent(kValues, static_cast<float>(pass));
    device().begin_pass();
    device().upload(x.data(), sent.data(), kValues * sizeof(float));
    EXPECT_EQ(x.host(), sent);
    device().zero(x.data(), kValues * sizeof(float));
    {
      // Its memory may be another's as soon as it is released.
      const DeviceArray<float> gone(device(), kValues);
      device().copy(gone.data(), x.data(), kValues * sizeof(float));
    }
    device().end_pass();
    EXPECT_EQ(x.host(), std::vector<float>(kValues, 0.0f));
  }
}

TEST_P(CudaLaunchQueue, ACancelledPassLeavesNothingBehind) {
  const DeviceArray<float> x(device(), kValues);
  const DeviceArray<float> y(device(), kValues);
  device().cancel_pass();
  for (int pass = 0; pass < 3; ++pass) {
    device().begin_pass();
    device().zero(x.data(), kValues * sizeof(float));
    device().cancel_pass();
    EXPECT_FALSE(device().in_pass());
    EXPECT_EQ(add(x, y, 2, 2), expected(2, 2));
  }
}

// Rows that are not finite are named when the pass ends.
TEST_P(CudaLaunchQueue, SealsAreToldOfAtTheEnd) {
  CudaBackend backend(make_cpu_backend(2));
  EXPECT_EQ(backend.end_pass(), -1);
  constexpr int kWidth = 32;
  std::vector<float> rows(kWidth, 1.0f);
  Scratch memory(backend.memory());
  SealJob job;
  job.format = page_format({.id = CodecId::f16}, kWidth, false);
  job.f32 = rows.data();
  job.stride = job.width = kWidth;
  job.n_rows = 1;
  job.page = memory.get<std::byte>(page_bytes(job.format));
  for (const int bad : {-1, 2, -1, 1}) {
    backend.begin_pass();
    for (int layer = 0; layer < 4; ++layer) {
      rows[5] = bad >= 0 && layer >= bad ? NAN : 1.0f;
      job.layer = layer;
      EXPECT_EQ(backend.seal({&job, 1}), -1);
    }
    EXPECT_EQ(backend.end_pass(), bad);
  }
  EXPECT_GT(backend.replays(), 0);
  rows[5] = NAN;
  EXPECT_EQ(backend.seal({&job, 1}), 0);
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaLaunchQueue, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
