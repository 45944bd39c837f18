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

INSTANTIATE_TEST_SUITE_P(Orders, CudaTwinMemory, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
