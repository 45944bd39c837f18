#include "kernels/cuda/twin_memory.h"

#include <cstring>

#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

class CudaTwinMemory : public CudaTest {};

TEST_P(CudaTwinMemory, BringsBytesThereAndBack) {
  TwinMemory memory(device());
  for (const size_t bytes : {64, 4096, 1 << 20}) {
    for (const size_t alignment : {64, 2 << 20}) {
      std::byte* block = memory.allocate(bytes, alignment);
      ASSERT_NE(block, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % alignment, 0u);
      std::memset(block, 7, bytes);
      memory.send(block, bytes);
      std::memset(block, 9, bytes);
      memory.zero(block + 16, 32);
      EXPECT_EQ(block[16], std::byte{9});  // of the device until it is fetched
      memory.fetch(block, bytes);
      EXPECT_EQ(block[15], std::byte{7});
      EXPECT_EQ(block[16], std::byte{0});
      EXPECT_EQ(block[48], std::byte{7});
      EXPECT_GT(memory.find(block + bytes - 1).bytes, 0u);
      memory.release(block, bytes, alignment);
    }
  }
}

TEST_P(CudaTwinMemory, CopiesWithinItselfAndFromTheHost) {
  TwinMemory memory(device());
  std::byte* block = memory.allocate(1000, 64);
  std::vector<std::byte> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::byte>(i % 251);
  memory.copy(block, values.data(), values.size());
  // Places that overlap, in both directions.
  memory.copy(block, block + 30, 500);
  memory.copy(block + 610, block + 600, 300);
  memory.fetch(block, 1000);
  EXPECT_EQ(std::memcmp(block, values.data() + 30, 500), 0);
  EXPECT_EQ(std::memcmp(block + 610, values.data() + 600, 300), 0);
  memory.release(block, 1000, 64);
}

TEST_P(CudaTwinMemory, LeavesTheHostsMemoryAlone) {
  TwinMemory memory(device());
  std::vector<std::byte> mine(10, std::byte{5});
  memory.fetch(mine.data(), mine.size());
  memory.send(mine.data(), mine.size());
  EXPECT_EQ(mine[3], std::byte{5});
  EXPECT_EQ(memory.find(mine.data()).bytes, 0u);
  EXPECT_EQ(memory.allocate(size_t{1} << 60, 64), nullptr);
}

// Blocks of pages under a limit, each filled with its number.
class CudaSpilledPages : public CudaTest {
 protected:
  static constexpr size_t kBytes = 3000;
  using Places = std::vector<MemoryPlace>;
  static constexpr MemoryPlace kDevice = MemoryPlace::device;
  static constexpr MemoryPlace kSpilled = MemoryPlace::spilled;

  void add(TwinMemory& memory) {
    std::byte* block = memory.allocate_pages(kBytes, 64);
    ASSERT_NE(block, nullptr);
    std::memset(block, static_cast<int>(blocks_.size()), kBytes);
    memory.send(block, kBytes);
    std::memset(block, 0xee, kBytes);
    blocks_.push_back(block);
  }
  void remove(TwinMemory& memory, size_t i) {
    memory.release(blocks_[i], kBytes, 64);
    blocks_[i] = nullptr;
  }
  // Where blocks are, whose bytes are checked.
  Places places(TwinMemory& memory) {
    Places found;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i] == nullptr) continue;
      found.push_back(memory.place_of(blocks_[i] + 100));
      memory.fetch(blocks_[i], kBytes);
      EXPECT_EQ(blocks_[i][0], static_cast<std::byte>(i)) << i;
      EXPECT_EQ(std::memcmp(blocks_[i], blocks_[i] + 1, kBytes - 1), 0) << i;
    }
    return found;
  }
  void read(const TwinMemory& memory, size_t i) { *memory.find(blocks_[i]).read = memory.age(); }
  void TearDown() override {
    for (const std::byte* block : blocks_) EXPECT_EQ(block, nullptr);
  }

  std::vector<std::byte*> blocks_;
};

TEST_P(CudaSpilledPages, TheOldestMakeRoomForNewOnes) {
  TwinMemory memory(device(), 3 * kBytes + 100);
  for (int i = 0; i < 4; ++i) add(memory);
  // Whoever comes when there is no room lies in the host's memory until a pass begins.
  EXPECT_EQ(places(memory), (Places{kDevice, kDevice, kDevice, kSpilled}));
  const uint64_t before = memory.generation();
  memory.rearrange();
  EXPECT_NE(memory.generation(), before);
  // Some room is left.
  EXPECT_EQ(places(memory), (Places{kSpilled, kSpilled, kDevice, kDevice}));
  EXPECT_EQ(memory.pages_on_device(), 2 * kBytes);
  EXPECT_EQ(memory.pages_spilled(), 2 * kBytes);
  add(memory);
  EXPECT_EQ(places(memory), (Places{kSpilled, kSpilled, kDevice, kDevice, kDevice}));
  const uint64_t after = memory.generation();
  memory.rearrange();
  EXPECT_EQ(memory.generation(), after);
  // Those that go make room for those that were spilled last.
  remove(memory, 4);
  remove(memory, 3);
  memory.rearrange();
  EXPECT_EQ(places(memory), (Places{kSpilled, kDevice, kDevice}));
  // Other blocks have no limit, and are none of this.
  std::byte* other = memory.allocate(100 * kBytes, 64);
  EXPECT_EQ(memory.place_of(other), kDevice);
  EXPECT_EQ(memory.pages_on_device(), 2 * kBytes);
  memory.release(other, 100 * kBytes, 64);
  for (size_t i = 0; i < 3; ++i) remove(memory, i);
  EXPECT_EQ(memory.pages_on_device() + memory.pages_spilled(), 0u);
}

TEST_P(CudaSpilledPages, ThoseThatNobodyReadsGoFirst) {
  TwinMemory memory(device(), 3 * kBytes + 100);
  for (int i = 0; i < 4; ++i) add(memory);
  memory.rearrange();
  EXPECT_EQ(places(memory), (Places{kSpilled, kSpilled, kDevice, kDevice}));
  // After many passes in which only the first two are read; not after a few.
  for (int pass = 0; pass < 200; ++pass) {
    memory.rearrange();
    read(memory, 0);
    read(memory, 1);
    const MemoryPlace place = memory.place_of(blocks_[0]);
    EXPECT_TRUE(place == kSpilled || pass > 10);
  }
  EXPECT_EQ(places(memory), (Places{kDevice, kDevice, kSpilled, kSpilled}));
  for (size_t i = 0; i < 4; ++i) remove(memory, i);
}

TEST_P(CudaSpilledPages, AreCopiedAsOthersAre) {
  TwinMemory memory(device(), kBytes);
  for (int i = 0; i < 3; ++i) add(memory);
  EXPECT_EQ(places(memory), (Places{kDevice, kSpilled, kSpilled}));
  const uint64_t writes = memory.writes();
  const auto check = [&](size_t block, size_t at, int expected) {
    memory.fetch(blocks_[block], kBytes);
    EXPECT_EQ(blocks_[block][at], static_cast<std::byte>(expected)) << block << ", " << at;
  };
  memory.copy(blocks_[1], blocks_[0], 10);       // from the device
  memory.copy(blocks_[0] + 20, blocks_[2], 10);  // to it
  memory.copy(blocks_[2] + 40, blocks_[1] + 10, 10);
  memory.zero(blocks_[1] + 101, 7);
  const std::vector<std::byte> mine(8, std::byte{9});
  memory.copy(blocks_[2] + 60, mine.data(), mine.size());
  EXPECT_GE(memory.writes(), writes + 4);
  check(1, 9, 0);
  check(1, 10, 1);
  check(0, 20, 2);
  check(2, 49, 1);
  check(1, 100, 1);
  check(1, 101, 0);
  check(1, 107, 0);
  check(1, 108, 1);
  check(2, 67, 9);
  for (size_t i = 0; i < 3; ++i) remove(memory, i);
}

#ifndef KVE_CUDA_COMPILED
TEST_P(CudaSpilledPages, SayWhenThereIsNoLockedMemory) {
  TwinMemory memory(device(), kBytes);
  add(memory);
  EXPECT_EQ(places(memory), Places{kDevice});
  emulation::most_locked = emulation::locked_bytes + kBytes;
  add(memory);
  EXPECT_EQ(memory.allocate_pages(kBytes, 64), nullptr);
  // Nothing can change places, and nothing is lost.
  memory.rearrange();
  EXPECT_EQ(places(memory), (Places{kDevice, kSpilled}));
  emulation::most_locked = SIZE_MAX;
  for (size_t i = 0; i < 2; ++i) remove(memory, i);
}
#endif

INSTANTIATE_TEST_SUITE_P(Orders, CudaSpilledPages, KVE_CUDA_ORDERS);
INSTANTIATE_TEST_SUITE_P(Orders, CudaTwinMemory, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
