#include "base/allocation_watch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace kve::test {
namespace {

thread_local bool watching = false;
thread_local Allocations allocations;

void* allocate(size_t bytes, size_t alignment) noexcept {
  if (watching) {
    ++allocations.count;
    allocations.bytes += bytes;
    allocations.largest = std::max(allocations.largest, bytes);
  }
  if (alignment <= alignof(std::max_align_t)) return std::malloc(bytes > 0 ? bytes : 1);
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, bytes) == 0 ? memory : nullptr;
}

void* allocate_or_throw(size_t bytes, size_t alignment) {
  if (void* memory = allocate(bytes, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

AllocationWatch::AllocationWatch() {
  allocations = {};
  watching = true;
}
AllocationWatch::~AllocationWatch() { watching = false; }
Allocations AllocationWatch::seen() const { return allocations; }

}  // namespace kve::test

#if defined(__GNUC__) && !defined(__clang__)
// GCC sees free() inlined into code that called new, but not that new is malloc() here.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif

// Every replaceable form, because sanitizers bring their own, which do not call each other.
using kve::test::allocate;
using kve::test::allocate_or_throw;
void* operator new(size_t n) { return allocate_or_throw(n, 1); }
void* operator new[](size_t n) { return allocate_or_throw(n, 1); }
void* operator new(size_t n, const std::nothrow_t&) noexcept { return allocate(n, 1); }
void* operator new[](size_t n, const std::nothrow_t&) noexcept { return allocate(n, 1); }
void* operator new(size_t n, std::align_val_t a) {
  return allocate_or_throw(n, static_cast<size_t>(a));
}
void* operator new[](size_t n, std::align_val_t a) {
  return allocate_or_throw(n, static_cast<size_t>(a));
}
void* operator new(size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(n, static_cast<size_t>(a));
}
void* operator new[](size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(n, static_cast<size_t>(a));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }

namespace kve::test {
namespace {

// Through a volatile pointer, or the compiler may remove an allocation that nobody uses.
template <class T>
std::unique_ptr<T> keep(T* memory) {
  T* volatile seen = memory;
  return std::unique_ptr<T>(seen);
}

TEST(AllocationWatch, CountsWhatIsAllocatedWhileItLives) {
  struct Large {
    std::byte bytes[5000];
  };
  struct alignas(256) Aligned {
    std::byte bytes[256];
  };
  const auto before = keep(new Large);
  const AllocationWatch watch;
  EXPECT_EQ(watch.seen().count, 0u);
  {
    const auto large = keep(new Large);
    const auto small = keep(new std::byte);
    const auto aligned = keep(new Aligned);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(aligned.get()) % 256, 0u);
  }
  const Allocations seen = watch.seen();
  EXPECT_EQ(seen.count, 3u);
  EXPECT_EQ(seen.bytes, 5000u + 1 + 256);
  EXPECT_EQ(seen.largest, 5000u);
}

}  // namespace
}  // namespace kve::test
