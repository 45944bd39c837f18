#include "cache/half_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "base/error.h"

namespace kve {
namespace {

void fill(HalfMemory& memory, size_t n) {
  memory.resize(n);
  for (size_t i = 0; i < n; ++i) memory.data()[i] = static_cast<uint16_t>(i);
}

TEST(HalfMemory, KeepsNumbersWhenItGrowsMovesAndIsCopied) {
  const auto counter = std::make_shared<MemoryCounter>();
  HalfMemory memory(counter);
  EXPECT_TRUE(memory.empty());
  fill(memory, 10);
  memory.reserve(1000);
  EXPECT_EQ(memory.size(), 10u);
  EXPECT_EQ(counter->live(), 2000);
  HalfMemory copy = memory;
  EXPECT_EQ(copy.capacity(), 10u);
  EXPECT_EQ(std::memcmp(copy.data(), memory.data(), 20), 0);
  const HalfMemory moved = std::move(copy);
  EXPECT_EQ(moved.data()[9], 9);
  memory = moved;
  EXPECT_EQ(counter->live(), 40);
}

TEST(HalfMemory, DropsNumbersFromTheFront) {
  HalfMemory memory(std::make_shared<MemoryCounter>());
  fill(memory, 100);
  memory.erase_front(30);
  ASSERT_EQ(memory.size(), 70u);
  EXPECT_EQ(memory.data()[0], 30);
  EXPECT_EQ(memory.data()[69], 99);
  memory.erase_front(70);
  EXPECT_TRUE(memory.empty());
}

TEST(HalfMemory, KeepsWhatItHasWhereThereIsNoMore) {
  const auto counter = std::make_shared<MemoryCounter>();
  HalfMemory memory(counter);
  fill(memory, 10);
  counter->set_limit(30);
  EXPECT_THROW(memory.resize(16), CapacityError);
  EXPECT_EQ(memory.size(), 10u);
  EXPECT_EQ(memory.data()[9], 9);
}

}  // namespace
}  // namespace kve
