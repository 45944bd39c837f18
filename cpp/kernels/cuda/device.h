// kernels/cuda/: the operations of kernels/backend.h on NVIDIA GPUs, file by file as in
// kernels/cpu/. Headers are plain C++, so that tests call the operations without CUDA; sources are
// written as exec.h says. Pointers named so in a header are to device memory. Operations start in
// the order of their calls and run on; Device::synchronize() and download() wait for them. Within a
// pass they may start only then (launch_queue.h).
//
// This header is the device and its memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/driver.h"

namespace kve::cuda {

class LaunchQueue;

// The GPU in use, and all its memory that we hold. Thread-safe.
class Device {
 public:
  // Throws as driver::find_device().
  Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device();

  // At least 256-byte aligned, not initialised. Throws CapacityError.
  std::byte* allocate(size_t bytes);
  void release(std::byte* memory, size_t bytes) noexcept;
  // Between the memories of the host (`from`, or `to` of download) and of the device.
  void upload(void* to, const void* from, size_t bytes);
  void download(void* to, const void* from, size_t bytes);
  // Within the device's; the places may overlap.
  void copy(void* to, const void* from, size_t bytes);
  void zero(void* to, size_t bytes);
  // Before what follows, what was launched aside is done.
  void meet();
  void synchronize();  // with what all threads have launched

  // What the calling thread launches between the two is one pass, which is like the one before as a
  // rule. One thread at a time. The latter waits; instead, where that has no sense any more,
  // cancel_pass(), which may be called at any time.
  void begin_pass();
  void end_pass();
  void cancel_pass() noexcept;
  bool in_pass() const;
  // How often all that came between two waits was what the device knew already.
  int64_t replays() const;

  const std::string& name() const { return properties_.name; }
  int multiprocessors() const { return properties_.multiprocessors; }
  size_t block_memory() const { return properties_.block_memory; }  // bytes that a block may share
  size_t live() const { return live_; }                             // bytes
  size_t peak() const { return peak_; }

 private:
  void count(size_t bytes);
  void flush();

  driver::Properties properties_;
  std::unique_ptr<LaunchQueue> queue_;
  std::mutex bounce_mutex_;
  std::byte* bounce_ = nullptr;  // locked memory that downloads go through
  std::atomic<size_t> live_ = 0;
  std::atomic<size_t> peak_ = 0;
};

// Time that the device takes.
class DeviceTimer {
 public:
  DeviceTimer();
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;
  ~DeviceTimer();
  void start();
  // Waits for what was launched since start(), and returns how long it took.
  double stop_ms();

 private:
  struct Events;
  std::unique_ptr<Events> events_;
};

// Memory of a device, which outlives it.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(Device& device, size_t n = 0) : device_(device), n_(n) {
    if (n > 0) data_ = reinterpret_cast<T*>(device.allocate(n * sizeof(T)));
  }
  DeviceArray(Device& device, std::span<const T> values) : DeviceArray(device, values.size()) {
    if (n_ > 0) device.upload(data_, values.data(), n_ * sizeof(T));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() {
    if (data_ != nullptr) device_.release(reinterpret_cast<std::byte*>(data_), n_ * sizeof(T));
  }

  T* data() const { return data_; }
  size_t size() const { return n_; }
  std::vector<T> host() const {
    std::vector<T> values(n_);
    if (n_ > 0) device_.download(values.data(), data_, n_ * sizeof(T));
    return values;
  }

 private:
  Device& device_;
  T* data_ = nullptr;
  size_t n_ = 0;
};

}  // namespace kve::cuda
