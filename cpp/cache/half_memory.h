// Rows in binary16 that a device works on: sinks and tails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/memory.h"

namespace kve {

// As a counted vector, but of a counter's source (base/memory_source.h), and the host neither reads
// nor writes the numbers: those that come are not initialised.
class HalfMemory {
 public:
  explicit HalfMemory(std::shared_ptr<MemoryCounter> counter);
  // Throws CapacityError.
  HalfMemory(const HalfMemory& other);
  HalfMemory(HalfMemory&& other) noexcept;
  HalfMemory& operator=(HalfMemory other) noexcept;
  ~HalfMemory();

  uint16_t* data() const { return data_; }
  size_t size() const { return size_; }
  size_t capacity() const { return capacity_; }
  bool empty() const { return size_ == 0; }
  const std::shared_ptr<MemoryCounter>& counter() const { return counter_; }

  // Throws CapacityError, and nothing has changed.
  void reserve(size_t n);
  void resize(size_t n) {
    if (n > capacity_) reserve(n);
    size_ = n;
  }
  void erase_front(size_t n) noexcept;
  // Gives the memory back.
  void release() noexcept;
  void swap(HalfMemory& other) noexcept;

 private:
  std::shared_ptr<MemoryCounter> counter_;
  uint16_t* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace kve
