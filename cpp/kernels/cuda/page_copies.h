// Copies of pages between the device's memory and locked memory of the host, which kernels read and
// write at its own address: many at once, without the host.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kve::cuda {

// Both places are 16-byte aligned.
struct PageCopy {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  int64_t bytes = 0;
  bool operator==(const PageCopy&) const = default;
};

// [n] in device memory. aside: what follows need not wait until Device::meet().
void copy_pages(const PageCopy* copies, int64_t n, bool aside);
// Of either memory.
void zero_bytes(std::byte* to, size_t bytes);

}  // namespace kve::cuda
