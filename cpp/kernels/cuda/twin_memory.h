// Memory of the GPU whose blocks have twins in the host's (base/memory_source.h). Twins that nobody
// fetches or writes are never touched, so that the system gives them no memory.
//
// Blocks of pages may have a limit. Beyond it they lie in locked memory of the host, at an address
// that kernels read and write as they do the device's, over the bus: first those that were not
// there yet, then at the beginning of a pass those that were read longest ago, or are the oldest.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "base/memory_source.h"
#include "base/slab_pool.h"
#include "kernels/cuda/device.h"

namespace kve::cuda {

// A block, and where it is for the device.
struct Twin {
  const std::byte* host = nullptr;
  size_t bytes = 0;
  std::byte* device = nullptr;
  bool spilled = false;  // to locked memory
  // When its pages were read last (TwinMemory::age()); null where no limit asks.
  std::atomic<int64_t>* read = nullptr;

  bool has(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    return byte >= host && byte < host + bytes;
  }
  // Of an address in the block.
  std::byte* at(const void* address) const {
    return device + (static_cast<const std::byte*>(address) - host);
  }
};

class TwinMemory final : public MemorySource {
 public:
  // The device outlives the memory. limit: bytes of pages on the device; 0: none.
  explicit TwinMemory(Device& device, size_t limit = 0);

  std::byte* allocate(size_t bytes, size_t alignment) noexcept override;
  std::byte* allocate_pages(size_t bytes, size_t alignment) noexcept override;
  void release(std::byte* memory, size_t bytes, size_t alignment) noexcept override;
  void advise_large_pages(std::byte* /*memory*/, size_t /*bytes*/) noexcept override {}
  void copy(void* to, const void* from, size_t bytes) override;
  void zero(void* to, size_t bytes) override;
  void fetch(const void* memory, size_t bytes) override;
  void send(const void* memory, size_t bytes) override;
  MemoryPlace place_of(const void* memory) const override;
  void wait() override { device_.synchronize(); }

  // The block that an address of the host is in; one without bytes where it is in none.
  Twin find(const void* address) const { return large_.find(address); }
  // Where a kernel that is about to be launched writes bytes of a block.
  std::byte* place_to_write(const void* address);
  // Changes whenever a block goes or moves, and with it what find() said.
  uint64_t generation() const { return large_.generation(); }
  // Changes whenever spilled bytes are about to.
  uint64_t writes() const { return writes_; }

  bool is_limited() const { return large_.limit() > 0; }
  int64_t age() const { return large_.age(); }
  // A pass begins: puts the pages that were read last where they are read fastest.
  void rearrange();
  // Bytes of blocks of pages.
  size_t pages_on_device() const { return large_.pages_on_device(); }
  size_t pages_spilled() const { return large_.pages_spilled(); }

 private:
  // As the device gives it, which takes long and wastes what is small.
  class Large final : public MemorySource {
   public:
    Large(Device& device, size_t limit) : device_(device), limit_(limit) {}
    ~Large() override { forget_released(); }
    std::byte* allocate(size_t bytes, size_t alignment) noexcept override;
    std::byte* allocate_spillable(size_t bytes, size_t alignment) noexcept;
    void release(std::byte* memory, size_t bytes, size_t alignment) noexcept override;
    void advise_large_pages(std::byte* /*memory*/, size_t /*bytes*/) noexcept override {}
    Twin find(const void* address) const;
    bool holds_pages(const std::byte* memory) const;
    uint64_t generation() const { return generation_; }
    size_t limit() const { return limit_; }
    int64_t age() const;
    void rearrange();
    size_t pages_on_device() const { return pages_on_device_; }
    size_t pages_spilled() const { return pages_spilled_; }

   private:
    struct Block {
      Twin twin;
      bool pages = false;
      int64_t number = 0;  // rising
      std::atomic<int64_t> read = 0;
    };
    struct Locked {
      std::byte* memory;
      size_t bytes;
    };
    std::byte* make(size_t bytes, size_t alignment, bool pages) noexcept;
    std::byte* lock(size_t bytes);
    void forget_released() noexcept;
    void list_pages(std::vector<Block*>* blocks);
    void spill(Block* block);
    void bring_back(Block* block);

    Device& device_;
    const size_t limit_;
    mutable std::mutex mutex_;
    std::atomic<uint64_t> generation_{0};
    std::map<const std::byte*, Block> blocks_;  // by their places in the host's memory
    std::atomic<size_t> pages_on_device_{0};
    std::atomic<size_t> pages_spilled_{0};
    std::atomic<int64_t> passes_{0};
    int64_t n_made_ = 0;
    // Of blocks that went; kept until the next pass, since what was launched may still read it.
    std::vector<Locked> released_;
  };

  Device& device_;
  Large large_;
  SlabPool small_;
  std::atomic<uint64_t> writes_{0};
  // Held by those who move blocks against those who copy bytes, in any thread.
  std::shared_mutex moves_;
};

}  // namespace kve::cuda
