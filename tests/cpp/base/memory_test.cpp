#include "base/memory.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "base/error.h"
#include "base/hash.h"

namespace kve {
namespace {

TEST(MemoryCounter, CountsLiveAndPeakBytes) {
  MemoryCounter counter;
  std::byte* a = counter.allocate(100);
  std::byte* b = counter.allocate(1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % kCacheLine, 0u);
  EXPECT_EQ(counter.live(), 1100);
  counter.release(b, 1000);
  EXPECT_EQ(counter.live(), 100);
  EXPECT_EQ(counter.peak(), 1100);
  EXPECT_EQ(counter.allocations(), 2);
  counter.release(a, 100);
  EXPECT_EQ(counter.live(), 0);
}

TEST(MemoryCounter, CountsBlocksAsTheyWereAskedForAndTheirHolders) {
  MemoryCounter counter;
  std::byte* small = counter.allocate_block(2308);
  std::byte* large = counter.allocate_block(1 << 20);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(small) % kCacheLine, 0u);
  constexpr int64_t kHolders = sizeof(SlabPool::Holders);
  EXPECT_EQ(counter.live(), 2308 + (1 << 20) + 2 * kHolders);
  counter.release_block(small, 2308);
  EXPECT_EQ(counter.live(), (1 << 20) + kHolders);
  EXPECT_EQ(counter.peak(), 2308 + (1 << 20) + 2 * kHolders);
  EXPECT_EQ(counter.allocations(), 2);
  counter.release_block(large, 1 << 20);
  EXPECT_EQ(counter.live(), 0);
}

TEST(MemoryCounter, SaysWhenMemoryIsExhausted) {
  MemoryCounter counter;
  EXPECT_THROW(counter.allocate(size_t{1} << 62), CapacityError);
  EXPECT_THROW(counter.allocate_block(size_t{1} << 62), CapacityError);
  EXPECT_EQ(counter.live(), 0);
}

TEST(CountedVector, CountsItsCapacity) {
  const auto counter = std::make_shared<MemoryCounter>();
  {
    CountedVector<float> values{CountedAllocator<float>(counter)};
    values.reserve(16);
    EXPECT_EQ(counter->live(), 64);
  }
  EXPECT_EQ(counter->live(), 0);
}

TEST(Scratch, GrowsAndStays) {
  Scratch scratch;
  float* first = scratch.get<float>(100);
  EXPECT_EQ(scratch.get<float>(50), first);
  EXPECT_GE(scratch.capacity(), 400u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(scratch.get<float>(100000)) % kCacheLine, 0u);
}

TEST(Hash, DependsOnEveryByteAndTheLength) {
  std::vector<std::byte> bytes(37);
  const uint64_t empty = hash64(bytes);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = std::byte{1};
    EXPECT_NE(hash64(bytes), empty) << i;
    bytes[i] = std::byte{0};
  }
  EXPECT_NE(hash64(std::span(bytes).first(36)), empty);
  EXPECT_NE(hash64(bytes, 1), empty);
}

}  // namespace
}  // namespace kve
