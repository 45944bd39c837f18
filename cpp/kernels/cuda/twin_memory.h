// Memory of the GPU whose blocks have twins in the host's (base/memory_source.h). Twins that nobody
// fetches or writes are never touched, so that the system gives them no memory.
#pragma once

#include <atomic>
#include <map>
#include <mutex>

#include "base/memory_source.h"
#include "base/slab_pool.h"
#include "kernels/cuda/device.h"

namespace kve::cuda {

// A block, and where it is on the device.
struct Twin {
  const std::byte* host = nullptr;
  size_t bytes = 0;
  std::byte* device = nullptr;

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
  // The device outlives the memory.
  explicit TwinMemory(Device& device);

  std::byte* allocate(size_t bytes, size_t alignment) noexcept override;
  void release(std::byte* memory, size_t bytes, size_t alignment) noexcept override;
  void advise_large_pages(std::byte* /*memory*/, size_t /*bytes*/) noexcept override {}
  void copy(void* to, const void* from, size_t bytes) override;
  void zero(void* to, size_t bytes) override;
  void fetch(const void* memory, size_t bytes) override;
  void send(const void* memory, size_t bytes) override;
  void wait() override { device_.synchronize(); }

  // The block that an address of the host is in; one without bytes where it is in none.
  Twin find(const void* address) const { return large_.find(address); }
  // Changes whenever a block goes, and with it what find() said.
  uint64_t generation() const { return large_.generation(); }

 private:
  // As the device gives it, which takes long and wastes what is small.
  class Large final : public MemorySource {
   public:
    explicit Large(Device& device) : device_(device) {}
    std::byte* allocate(size_t bytes, size_t alignment) noexcept override;
    void release(std::byte* memory, size_t bytes, size_t alignment) noexcept override;
    void advise_large_pages(std::byte* /*memory*/, size_t /*bytes*/) noexcept override {}
    Twin find(const void* address) const;
    uint64_t generation() const { return generation_; }

   private:
    Device& device_;
    mutable std::mutex mutex_;
    std::atomic<uint64_t> generation_{0};
    std::map<const std::byte*, Twin> blocks_;  // by their places in the host's memory
  };

  Device& device_;
  Large large_;
  SlabPool small_;
};

}  // namespace kve::cuda
