// Memory for many blocks of few sizes, such as the pages of a cache, which are read all at once in
// every step: they lie together in slabs that the system is asked to back with large pages, because
// with small ones the translation of addresses takes longer than a block's share of the bandwidth.
//
// What the pool knows of blocks lies elsewhere, in the host's memory, so that a device's is touched
// by those only who use it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/memory_source.h"

namespace kve {

// Thread-safe. Every block is released before the pool dies.
class SlabPool {
 public:
  // How many share a block: for whoever allocates it, 1 at first.
  using Holders = std::atomic<uint32_t>;

  // The source outlives the pool.
  explicit SlabPool(MemorySource& source = host_memory());
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;
  ~SlabPool();

  // 64-byte aligned, not initialised; null when the system has no memory left.
  std::byte* allocate(size_t bytes);
  // `bytes` as it was allocated. A slab without blocks goes back to the system, unless it is the
  // only one that has room for blocks of its size.
  void release(std::byte* block, size_t bytes) noexcept;
  // Of a block that is not released.
  Holders& holders(const std::byte* block, size_t bytes) const;

  MemorySource& source() const { return source_; }
  size_t n_slabs() const;

 private:
  struct Slab;
  struct Size {
    size_t stride;
    size_t n_slabs;
    Slab* with_room;  // newest first
  };
  std::byte* allocate_own(size_t bytes);
  Slab& slab_of(const std::byte* block) const;
  Size* find_size(size_t stride);  // null: there is none
  Size* add_size(size_t stride);   // null: out of memory
  Slab* new_slab(Size* size);      // null: out of memory
  void free_slab(Size* size, Slab* slab) noexcept;

  MemorySource& source_;
  mutable std::mutex mutex_;
  std::vector<Size> sizes_;
  std::unordered_map<uintptr_t, std::unique_ptr<Slab>> slabs_;  // by their places
  std::unordered_map<const std::byte*, Holders> own_;  // of blocks that have their own memory
};

}  // namespace kve
