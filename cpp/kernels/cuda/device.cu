#include "kernels/cuda/device.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/exec.h"

namespace kve::cuda {
namespace {

// Compute capability 7.5, the first with the matrix products of warp.h.
constexpr int kLeastMajor = 7;
constexpr int kLeastMinor = 5;

std::string version(int number) { return message(number / 1000, ".", number % 1000 / 10); }

}  // namespace

Device::Device() {
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "the version of the driver");
  if (driver == 0) throw DeviceError("cuda: expected an NVIDIA driver, found none");
  int runtime = 0;
  check(cudaRuntimeGetVersion(&runtime), "the version of the runtime");
  // Within a major version newer runtimes work with older drivers (CUDA Compatibility).
  if (driver / 1000 < runtime / 1000) {
    throw DeviceError(message("cuda: expected a driver for CUDA ", runtime / 1000,
                              " or newer, found one for CUDA ", version(driver)));
  }
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && count == 0)) {
    throw DeviceError("cuda: expected an NVIDIA GPU, found none");
  }
  check(counted, "the number of GPUs");
  int index = 0;
  check(cudaGetDevice(&index), "the current GPU");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "the properties of the GPU");
  name_ = properties.name;
  multiprocessors_ = properties.multiProcessorCount;
  block_memory_ = properties.sharedMemPerBlockOptin;
  if (properties.major < kLeastMajor ||
      (properties.major == kLeastMajor && properties.minor < kLeastMinor)) {
    throw DeviceError(message("cuda: expected a GPU of compute capability ", kLeastMajor, ".",
                              kLeastMinor, " or newer, found ", name_, " with ", properties.major,
                              ".", properties.minor));
  }
}

void Device::count(size_t bytes) {
  const size_t now = live_ += bytes;
  size_t peak = peak_;
  while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
  }
}

std::byte* Device::allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t result = cudaMalloc(&memory, bytes);
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // so that nobody else finds it
    size_t free_bytes = 0;
    size_t total = 0;
    check(cudaMemGetInfo(&free_bytes, &total), "the free memory");
    throw CapacityError(message("cuda: expected ", bytes, " bytes of GPU memory, found ",
                                free_bytes, " free of ", total));
  }
  check(result, "allocate");
  count(bytes);
  return static_cast<std::byte*>(memory);
}

void Device::release(std::byte* memory, size_t bytes) noexcept {
  cudaFree(memory);
  live_ -= bytes;
}

void Device::upload(void* to, const void* from, size_t bytes) {
  // From memory that is not locked the call returns when the bytes have been read.
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, cudaStreamPerThread), "upload");
}

void Device::download(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, cudaStreamPerThread), "download");
  check(cudaStreamSynchronize(cudaStreamPerThread), "download");
}

void Device::copy(void* to, const void* from, size_t bytes) {
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  const auto distance = static_cast<size_t>(target < source ? source - target : target - source);
  if (distance == 0) return;
  // Places that overlap, piece by piece, none of which is read after it was written.
  const size_t pieces = (bytes + distance - 1) / distance;
  for (size_t i = 0; i < pieces; ++i) {
    const size_t at = (target < source ? i : pieces - 1 - i) * distance;
    const size_t n = std::min(distance, bytes - at);
    check(
        cudaMemcpyAsync(target + at, source + at, n, cudaMemcpyDeviceToDevice, cudaStreamPerThread),
        "copy");
  }
}

void Device::zero(void* to, size_t bytes) {
  check(cudaMemsetAsync(to, 0, bytes, cudaStreamPerThread), "zero");
}

void Device::synchronize() { check(cudaDeviceSynchronize(), "synchronize"); }

struct DeviceTimer::Events {
  cudaEvent_t first{};
  cudaEvent_t last{};
};

DeviceTimer::DeviceTimer() : events_(std::make_unique<Events>()) {
  check(cudaEventCreate(&events_->first), "a timer");
  check(cudaEventCreate(&events_->last), "a timer");
}

DeviceTimer::~DeviceTimer() {
  cudaEventDestroy(events_->first);
  cudaEventDestroy(events_->last);
}

void DeviceTimer::start() {
  check(cudaEventRecord(events_->first, cudaStreamPerThread), "a timer");
}

double DeviceTimer::stop_ms() {
  check(cudaEventRecord(events_->last, cudaStreamPerThread), "a timer");
  check(cudaEventSynchronize(events_->last), "a timer");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, events_->first, events_->last), "a timer");
  return static_cast<double>(ms);
}

}  // namespace kve::cuda
