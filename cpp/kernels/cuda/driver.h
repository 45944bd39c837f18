// What is asked of CUDA, and of its emulation in tests. Everything is of this thread's stream.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/operation.h"

namespace kve::cuda::driver {

struct Properties {
  std::string name;
  int multiprocessors = 0;
  size_t block_memory = 0;  // bytes that a block may share
};
// Throws DeviceError: there is no GPU, its driver is older than this program needs, or it cannot
// run kernels of this program. So do all others where the device has failed.
Properties find_device();

// At least 256-byte aligned, not initialised. Throws CapacityError.
std::byte* allocate(size_t bytes);
void release(std::byte* memory) noexcept;
// The same of the host's memory, at a place that stays, which copies go to and from on their own,
// and which kernels read and write at the same address.
std::byte* lock(size_t bytes);
void unlock(std::byte* memory) noexcept;

void issue(const Operation& operation, const std::byte* args);
// From any memory of the host, which has been read on return.
void upload(void* to, const void* from, size_t bytes);
// Into any memory of the host, which has been written on return.
void download(void* to, const void* from, size_t bytes);
void synchronize();  // with what all threads have had done

// Operations that the device does one after the other when it is told once.
class Graph {
 public:
  // args [i]: of operations [i].
  Graph(std::span<const Operation> operations, std::span<const std::byte* const> args);
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph();
  void launch();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kve::cuda::driver
