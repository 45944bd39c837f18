// Counted memory: whoever reports bytes reads them from a MemoryCounter, never from a formula.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "base/memory_source.h"
#include "base/slab_pool.h"

namespace kve {

inline constexpr size_t kCacheLine = 64;

// Allocates 64-byte aligned memory and knows how much of it is alive. Thread-safe.
class MemoryCounter {
 public:
  // The source outlives the counter.
  explicit MemoryCounter(MemorySource& source = host_memory()) : blocks_(source) {}

  // The host's. Throws CapacityError when the system has no memory left. The memory is not
  // initialised.
  std::byte* allocate(size_t bytes);
  void release(std::byte* memory, size_t bytes) noexcept;
  // The same of the source.
  std::byte* allocate_shared(size_t bytes);
  void release_shared(std::byte* memory, size_t bytes) noexcept;
  // The same for one of many blocks of few sizes (slab_pool.h). Counted are the bytes asked for, as
  // everywhere, and those of holders(), but not what a slab has room for: below 2 MiB for each size
  // until blocks between others are released.
  std::byte* allocate_block(size_t bytes);
  void release_block(std::byte* memory, size_t bytes) noexcept;
  SlabPool::Holders& holders(const std::byte* block, size_t bytes) const {
    return blocks_.holders(block, bytes);
  }
  // A new block instead of one that is no smaller, which is released: no limit refuses that. Both
  // exist for a moment.
  std::byte* exchange_block(std::byte* memory, size_t bytes, size_t new_bytes);

  // From now on, what would make live() exceed `bytes` throws CapacityError.
  void set_limit(int64_t bytes) { limit_.store(bytes, std::memory_order_relaxed); }

  MemorySource& source() const { return blocks_.source(); }
  int64_t live() const { return live_.load(std::memory_order_relaxed); }
  int64_t peak() const { return peak_.load(std::memory_order_relaxed); }
  int64_t allocations() const { return allocations_.load(std::memory_order_relaxed); }

 private:
  void check_limit(size_t bytes) const;
  std::byte* count(void* memory, size_t bytes);

  SlabPool blocks_;
  std::atomic<int64_t> live_{0};
  std::atomic<int64_t> peak_{0};
  std::atomic<int64_t> allocations_{0};
  std::atomic<int64_t> limit_{INT64_MAX};
};

// A standard allocator over a shared counter, which it keeps alive.
template <class T>
class CountedAllocator {
 public:
  using value_type = T;
  explicit CountedAllocator(std::shared_ptr<MemoryCounter> counter)
      : counter_(std::move(counter)) {}
  // Copied even when moved from: an allocator has to stay usable.
  CountedAllocator(const CountedAllocator&) = default;
  CountedAllocator& operator=(const CountedAllocator&) = default;
  template <class U>
  CountedAllocator(const CountedAllocator<U>& other)  // NOLINT(google-explicit-constructor)
      : counter_(other.counter()) {}

  T* allocate(size_t n) {
    if (n > SIZE_MAX / sizeof(T)) throw std::bad_array_new_length();
    return reinterpret_cast<T*>(counter_->allocate(n * sizeof(T)));
  }
  void deallocate(T* memory, size_t n) noexcept {
    counter_->release(reinterpret_cast<std::byte*>(memory), n * sizeof(T));
  }
  const std::shared_ptr<MemoryCounter>& counter() const { return counter_; }
  template <class U>
  bool operator==(const CountedAllocator<U>& other) const {
    return counter_ == other.counter();
  }

 private:
  std::shared_ptr<MemoryCounter> counter_;
};

template <class T>
using CountedVector = std::vector<T, CountedAllocator<T>>;

// Grow-only, 64-byte aligned scratch memory that is not counted; contents do not survive growth.
class Scratch {
 public:
  Scratch() : Scratch(host_memory()) {}
  // The source outlives the memory.
  explicit Scratch(MemorySource& source) : source_(&source) {}
  Scratch(Scratch&& other) noexcept;
  Scratch& operator=(Scratch&& other) noexcept;
  ~Scratch();

  template <class T>
  T* get(size_t n) {
    return reinterpret_cast<T*>(bytes(n * sizeof(T)));
  }
  size_t capacity() const { return capacity_; }

 private:
  std::byte* bytes(size_t n);
  MemorySource* source_;
  std::byte* memory_ = nullptr;
  size_t capacity_ = 0;
};

// A counted, 64-byte aligned block of a counter's source that is made for reading in order: the
// system is asked to back it with large pages.
class LargeBlock {
 public:
  LargeBlock() = default;
  // Throws CapacityError. The memory is not initialised.
  LargeBlock(std::shared_ptr<MemoryCounter> counter, size_t bytes);
  LargeBlock(LargeBlock&& other) noexcept;
  LargeBlock& operator=(LargeBlock&& other) noexcept;
  ~LargeBlock();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::shared_ptr<MemoryCounter> counter_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Resident set size of this process now, and its maximum so far, in bytes; 0 where unknown.
int64_t resident_bytes();
int64_t peak_resident_bytes();

}  // namespace kve
