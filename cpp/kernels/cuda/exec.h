// How kernels of this folder are written: as CUDA C++, of which only what this header and warp.h
// offer is used. nvcc compiles them for GPUs. The tests compile the same sources as plain C++
// against an emulation of CUDA's execution model (tests/cpp/kernels/cuda/emulation.h), so that
// their logic is checked where there is no GPU.
//
// A kernel takes one argument, a plain struct. Its threads form whole warps, and every thread of a
// warp reaches every operation of warp.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/operation.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <string>

#include "base/error.h"

// Declares `name`, the block's shared memory of the size that launch() was given.
#define KVE_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// Before loops whose counters index arrays that are to stay in registers.
#define KVE_UNROLL _Pragma("unroll")

namespace kve::cuda {

// Throws DeviceError unless the call has succeeded.
inline void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw DeviceError(message("cuda: ", what, ": ", cudaGetErrorString(result)));
}

}  // namespace kve::cuda
#else
#include "kernels/cuda/emulation.h"
#endif

namespace kve::cuda {

// Passes are known again by the bytes of arguments (launch_queue.h), between which a struct may
// have any. Where compilers cannot clear these, a pass may be issued that could have been replayed.
template <class Args>
void clear_padding([[maybe_unused]] Args* args) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
  __builtin_clear_padding(args);
#endif
#endif
}

// Runs grid.x * grid.y * grid.z blocks of `threads` threads, after what was launched before; aside:
// what follows need not wait until Device::meet().
template <class Args>
void launch(const char* name, void (*kernel)(Args), GridSize grid, unsigned threads,
            size_t shared_bytes, Args args, bool aside = false) {
  static_assert(std::is_trivially_copyable_v<Args>);
  clear_padding(&args);
  Operation operation;
  operation.aside = aside;
  operation.name = name;
  operation.kernel = reinterpret_cast<const void*>(kernel);
#ifndef __CUDACC__
  operation.run = emulation::run_kernel<Args>;
#endif
  operation.grid = grid;
  operation.threads = threads;
  operation.shared_bytes = shared_bytes;
  operation.bytes = sizeof(Args);
  submit(operation, reinterpret_cast<const std::byte*>(&args));
}

}  // namespace kve::cuda
