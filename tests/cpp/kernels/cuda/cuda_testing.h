// What the tests of kernels/cuda/ share. They run under emulation, each twice, with threads in both
// orders; and, as another program where nvcc is, on a GPU.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/device.h"
#ifndef KVE_CUDA_COMPILED
#include "kernels/cuda/emulation.h"
#endif
#include "kernels/kernel_testing.h"

namespace kve::cuda {

// Runs as many instances of a test as there are orders of threads.
class CudaTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
#ifdef KVE_CUDA_COMPILED
    try {
      device_ = std::make_unique<Device>();
    } catch (const DeviceError& error) {
      GTEST_SKIP() << error.what();
    }
#else
    emulation::reversed = GetParam();
    emulation::most_locked = SIZE_MAX;
    device_ = std::make_unique<Device>();
#endif
  }
  Device& device() { return *device_; }

  template <class T>
  DeviceArray<T> on_device(const std::vector<T>& values) {
    return DeviceArray<T>(*device_, std::span<const T>(values));
  }

 private:
  std::unique_ptr<Device> device_;
};

#ifdef KVE_CUDA_COMPILED
#define KVE_CUDA_ORDERS ::testing::Values(false)
#else
#define KVE_CUDA_ORDERS ::testing::Values(false, true)
#endif

}  // namespace kve::cuda
