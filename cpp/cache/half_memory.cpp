#include "cache/half_memory.h"

#include <utility>

#include "base/error.h"

namespace kve {

HalfMemory::HalfMemory(std::shared_ptr<MemoryCounter> counter) : counter_(std::move(counter)) {}

HalfMemory::HalfMemory(const HalfMemory& other) : HalfMemory(other.counter_) {
  reserve(other.size_);
  size_ = other.size_;
  counter_->source().copy(data_, other.data_, size_ * sizeof(uint16_t));
}

HalfMemory::HalfMemory(HalfMemory&& other) noexcept : HalfMemory(other.counter_) { swap(other); }

HalfMemory& HalfMemory::operator=(HalfMemory other) noexcept {
  swap(other);
  return *this;
}

HalfMemory::~HalfMemory() { release(); }

void HalfMemory::reserve(size_t n) {
  if (n <= capacity_) return;
  const size_t bytes = n * sizeof(uint16_t);
  std::byte* memory = counter_->allocate_shared(bytes);
  // The rows of a whole prompt are read again in every pass, and are first written in this one.
  counter_->source().advise_large_pages(memory, bytes);
  auto* grown = reinterpret_cast<uint16_t*>(memory);
  counter_->source().copy(grown, data_, size_ * sizeof(uint16_t));
  const size_t size = size_;
  release();
  data_ = grown;
  size_ = size;
  capacity_ = n;
}

void HalfMemory::erase_front(size_t n) noexcept {
  if (n == 0) return;
  try {
    counter_->source().copy(data_, data_ + n, (size_ - n) * sizeof(uint16_t));
  } catch (const DeviceError&) {
    // The device has failed, which whoever uses it next is told.
  }
  size_ -= n;
}

void HalfMemory::release() noexcept {
  if (data_ != nullptr) {
    counter_->release_shared(reinterpret_cast<std::byte*>(data_), capacity_ * sizeof(uint16_t));
  }
  data_ = nullptr;
  size_ = 0;
  capacity_ = 0;
}

void HalfMemory::swap(HalfMemory& other) noexcept {
  std::swap(counter_, other.counter_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(capacity_, other.capacity_);
}

}  // namespace kve
