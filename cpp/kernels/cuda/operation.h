// What the device is told to do: kernels, and small copies between them, in order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kve::cuda {

struct GridSize {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  bool operator==(const GridSize&) const = default;
};

struct Operation {
  enum class Kind : uint8_t {
    kernel,
    upload,  // from locked memory, which stays as it is until the device has read it
    copy,    // within the device's memory; the places do not overlap
    zero,
    meet,  // what was done aside so far is done before what follows
  };
  Kind kind = Kind::kernel;
  // Of a kernel: after what came before, and beside what follows until they meet.
  bool aside = false;
  // Kernels take one struct of `bytes`, by value.
  const char* name = "";
  const void* kernel = nullptr;
  void (*run)(const Operation&, const std::byte* args) = nullptr;  // under emulation
  GridSize grid{};
  unsigned threads = 0;
  size_t shared_bytes = 0;
  // The others.
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;

  bool operator==(const Operation&) const = default;
};

// Tells the device, or the queue of this thread's pass (launch_queue.h).
void submit(const Operation& operation, const std::byte* args);

}  // namespace kve::cuda
