#include "base/memory.h"

#include <fstream>
#include <string>
#include <utility>

#include "base/error.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace kve {

// What an allocation gave, counted; throws when it gave nothing.
std::byte* MemoryCounter::count(void* memory, size_t bytes) {
  if (memory == nullptr) {
    throw CapacityError(
        message("out of memory: asked for ", bytes, " bytes, ", live(), " are in use"));
  }
  const int64_t now = live_.fetch_add(static_cast<int64_t>(bytes)) + static_cast<int64_t>(bytes);
  int64_t peak = peak_.load();
  while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
  }
  allocations_.fetch_add(1, std::memory_order_relaxed);
  return static_cast<std::byte*>(memory);
}

void MemoryCounter::check_limit(size_t bytes) const {
  const int64_t limit = limit_.load(std::memory_order_relaxed);
  const int64_t left = limit - live();
  if (left >= 0 && bytes <= static_cast<size_t>(left)) return;
  throw CapacityError(message("memory limit of ", limit, " bytes: asked for ", bytes, " more, ",
                              live(), " are in use"));
}

std::byte* MemoryCounter::allocate(size_t bytes) {
  check_limit(bytes);
  return count(::operator new(bytes > 0 ? bytes : 1, std::align_val_t{kCacheLine}, std::nothrow),
               bytes);
}

void MemoryCounter::release(std::byte* memory, size_t bytes) noexcept {
  ::operator delete(memory, std::align_val_t{kCacheLine});
  live_.fetch_sub(static_cast<int64_t>(bytes));
}

std::byte* MemoryCounter::allocate_shared(size_t bytes) {
  check_limit(bytes);
  return count(source().allocate(bytes, kCacheLine), bytes);
}

void MemoryCounter::release_shared(std::byte* memory, size_t bytes) noexcept {
  source().release(memory, bytes, kCacheLine);
  live_.fetch_sub(static_cast<int64_t>(bytes));
}

std::byte* MemoryCounter::allocate_block(size_t bytes) {
  const size_t counted = bytes + sizeof(SlabPool::Holders);
  check_limit(counted);
  return count(blocks_.allocate(bytes), counted);
}

void MemoryCounter::release_block(std::byte* memory, size_t bytes) noexcept {
  blocks_.release(memory, bytes);
  live_.fetch_sub(static_cast<int64_t>(bytes + sizeof(SlabPool::Holders)));
}

std::byte* MemoryCounter::exchange_block(std::byte* memory, size_t bytes, size_t new_bytes) {
  KVE_ASSERT(new_bytes <= bytes);
  std::byte* block = blocks_.allocate(new_bytes);
  if (block == nullptr) return count(nullptr, new_bytes);
  blocks_.release(memory, bytes);
  live_.fetch_sub(static_cast<int64_t>(bytes - new_bytes));
  allocations_.fetch_add(1, std::memory_order_relaxed);
  return block;
}

LargeBlock::LargeBlock(std::shared_ptr<MemoryCounter> counter, size_t bytes)
    : counter_(std::move(counter)), data_(counter_->allocate_shared(bytes)), size_(bytes) {
  counter_->source().advise_large_pages(data_, bytes);
}

LargeBlock::LargeBlock(LargeBlock&& other) noexcept
    : counter_(std::move(other.counter_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

LargeBlock& LargeBlock::operator=(LargeBlock&& other) noexcept {
  std::swap(counter_, other.counter_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

LargeBlock::~LargeBlock() {
  if (data_ != nullptr) counter_->release_shared(data_, size_);
}

Scratch::Scratch(Scratch&& other) noexcept
    : source_(other.source_),
      memory_(std::exchange(other.memory_, nullptr)),
      capacity_(std::exchange(other.capacity_, 0)) {}

Scratch& Scratch::operator=(Scratch&& other) noexcept {
  std::swap(source_, other.source_);
  std::swap(memory_, other.memory_);
  std::swap(capacity_, other.capacity_);
  return *this;
}

Scratch::~Scratch() {
  if (memory_ != nullptr) source_->release(memory_, capacity_, kCacheLine);
}

std::byte* Scratch::bytes(size_t n) {
  if (n > capacity_) {
    if (memory_ != nullptr) source_->release(memory_, capacity_, kCacheLine);
    // A quarter more than asked for, so that slowly growing requests do not reallocate each time.
    const size_t grown = n + n / 4 + kCacheLine;
    capacity_ = 0;
    memory_ = source_->allocate(grown, kCacheLine);
    if (memory_ == nullptr)
      throw CapacityError(message("out of memory: asked for ", grown, " bytes"));
    capacity_ = grown;
    // Rows of activations are as wide as pages: writing a few columns of all of them, as a matrix
    // product does, would need a page table entry each.
    source_->advise_large_pages(memory_, grown);
  }
  return memory_;
}

#if defined(__linux__)
namespace {
// A line "Name:   123 kB" of /proc/self/status, in bytes.
int64_t status_bytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(name, 0) == 0) return std::stoll(line.substr(name.size())) * 1024;
  }
  return 0;
}
}  // namespace
int64_t resident_bytes() { return status_bytes("VmRSS:"); }
int64_t peak_resident_bytes() { return status_bytes("VmHWM:"); }
#elif defined(__APPLE__)
int64_t resident_bytes() { return 0; }
int64_t peak_resident_bytes() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<int64_t>(usage.ru_maxrss) : 0;
}
#else
int64_t resident_bytes() { return 0; }
int64_t peak_resident_bytes() { return 0; }
#endif

}  // namespace kve
