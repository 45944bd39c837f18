#include "base/memory_source.h"

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace kve {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;

// Blocks that hold large pages begin with one.
std::align_val_t alignment_of(size_t bytes, size_t least) {
  return std::align_val_t{bytes < kLargePage || least > kLargePage ? least : kLargePage};
}

}  // namespace

std::byte* MemorySource::allocate(size_t bytes, size_t alignment) noexcept {
  return static_cast<std::byte*>(
      ::operator new(bytes > 0 ? bytes : 1, alignment_of(bytes, alignment), std::nothrow));
}

std::byte* MemorySource::allocate_pages(size_t bytes, size_t alignment) noexcept {
  return allocate(bytes, alignment);
}

void MemorySource::release(std::byte* memory, size_t bytes, size_t alignment) noexcept {
  ::operator delete(memory, alignment_of(bytes, alignment));
}

void MemorySource::advise_large_pages([[maybe_unused]] std::byte* memory,
                                      [[maybe_unused]] size_t bytes) noexcept {
#if defined(MADV_HUGEPAGE)
  const uintptr_t start =
      (reinterpret_cast<uintptr_t>(memory) + kLargePage - 1) & ~(kLargePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kLargePage - 1);
  if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}

void MemorySource::copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

void MemorySource::zero(void* to, size_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
}

MemorySource& host_memory() {
  static MemorySource memory;
  return memory;
}

}  // namespace kve
