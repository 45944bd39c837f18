// Where the operands of an operation are on the device.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "base/span.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/twin_memory.h"

namespace kve::cuda {

// What has a twin, or was kept, is there already; other operands are sent there, and results back.
// One operation at a time, between begin() and finish().
class Operands {
 public:
  // Both outlive the operands.
  Operands(Device& device, const TwinMemory& twins) : device_(device), twins_(twins) {}
  Operands(const Operands&) = delete;
  Operands& operator=(const Operands&) = delete;
  ~Operands();

  // A copy of bytes of the host that stay as they are and where they are.
  void keep(std::span<const std::byte> constants);

  void begin();
  // Memory of the device, 256-byte aligned, until the next operation begins.
  std::byte* scratch(size_t bytes);
  template <class T>
  T* scratch(size_t n) {
    return reinterpret_cast<T*>(scratch(n * sizeof(T)));
  }
  // n values of the host, or null.
  template <class T>
  const T* read(const T* from, size_t n) {
    return reinterpret_cast<const T*>(
        read_bytes(reinterpret_cast<const std::byte*>(from), n * sizeof(T)));
  }
  template <class T>
  const T* send(std::span<const T> values) {
    T* to = scratch<T>(values.size());
    if (!values.empty()) device_.upload(to, values.data(), values.size_bytes());
    return to;
  }
  ConstMat read(ConstMat from);
  // A result, whose values so far are not read; one that is changed in place.
  Mat write(Mat to);
  Mat update(Mat to);
  // Waits for results that go to the host, if there are any.
  void finish();

  // The place on the device of what has a twin or was kept; else null.
  const std::byte* find(const void* address) const;

 private:
  struct Block {
    std::byte* data;
    size_t bytes;
  };
  struct Result {
    Mat host;
    Mat device;
  };
  const std::byte* read_bytes(const std::byte* from, size_t bytes);

  Device& device_;
  const TwinMemory& twins_;
  std::map<const std::byte*, Block> kept_;  // by their places in the host's memory
  std::vector<Block> blocks_;               // of scratch memory
  size_t used_ = 0;                         // of the last one
  std::vector<Result> results_;
};

}  // namespace kve::cuda
