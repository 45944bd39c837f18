// CUDA's execution model for kernels that are compiled as plain C++ (kernels/cuda/exec.h): blocks
// run one after another; the threads of a block are fibers that run until they meet a barrier. Like
// the device it makes no promise about the order of threads: tests run kernels in both orders, so
// that a missing barrier shows as a difference. Shared memory begins as NaN. A program in which
// threads of a warp or block wait for different barriers is ended with a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "kernels/cuda/operation.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define KVE_UNROLL
#define KVE_SHARED(name) unsigned char* const name = ::kve::cuda::emulation::shared_memory()

namespace kve::cuda {

// Of the running fiber, as CUDA names them.
inline GridSize threadIdx;
inline GridSize blockIdx;
inline GridSize blockDim;
inline GridSize gridDim;

namespace emulation {

// From the last thread of a block to the first; and operations aside as late as they may be, not as
// early.
inline bool reversed = false;
// Bytes of locked memory that are in use, and that there are.
inline size_t locked_bytes = 0;
inline size_t most_locked = SIZE_MAX;

constexpr int kWarp = 32;
// What a thread shows the others of its warp.
struct Shown {
  uint32_t words[8];
};

unsigned char* shared_memory();
// Ends the program: a GPU would end the kernel.
[[noreturn]] void misaligned();
void wait_for_block();
void wait_for_warp();
// Returns what the 32 threads of the warp have shown; valid until the warp's next exchange but one.
const Shown* exchange(const Shown& mine);
void run(const char* name, GridSize grid, unsigned threads, size_t shared_bytes,
         const std::function<void()>& kernel);
// Operation::run of kernels that take Args.
template <class Args>
void run_kernel(const Operation& operation, const std::byte* bytes) {
  Args args;
  std::memcpy(&args, bytes, sizeof(Args));
  auto* kernel = reinterpret_cast<void (*)(Args)>(const_cast<void*>(operation.kernel));
  run(operation.name, operation.grid, operation.threads, operation.shared_bytes,
      [&] { kernel(args); });
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp() { emulation::wait_for_warp(); }

}  // namespace kve::cuda
