#include "base/slab_pool.h"

#include <new>

#include "base/error.h"

namespace kve {
namespace {

constexpr size_t kSlabBytes = 2 << 20;   // a large page of the common processors
constexpr size_t kMostBytes = 64 << 10;  // larger blocks get their own memory
constexpr size_t kAlignment = 64;

// Not where accesses past the end of a block shall be found.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kUseSlabs = false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool kUseSlabs = false;
#else
constexpr bool kUseSlabs = true;
#endif
#else
constexpr bool kUseSlabs = true;
#endif

size_t stride_of(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
bool has_own_memory(size_t bytes) { return !kUseSlabs || bytes == 0 || bytes > kMostBytes; }
// Slabs are aligned to their size.
uintptr_t place_of(const std::byte* block) {
  return reinterpret_cast<uintptr_t>(block) / kSlabBytes;
}

}  // namespace

struct SlabPool::Slab {
  static constexpr uint32_t kNone = UINT32_MAX;

  std::byte* memory;
  size_t stride;
  uint32_t n_blocks;
  // Of blocks in use; in those of released blocks the number of the next released one.
  std::unique_ptr<Holders[]> holders;
  uint32_t used = 0;
  uint32_t fresh = 0;         // blocks from here on were never used
  uint32_t released = kNone;  // the first
  Slab* previous = nullptr;   // among those with room
  Slab* next = nullptr;

  bool has_room() const { return released != kNone || fresh < n_blocks; }
  uint32_t number_of(const std::byte* block) const {
    return static_cast<uint32_t>(static_cast<size_t>(block - memory) / stride);
  }
  std::byte* take() {
    ++used;
    const uint32_t number = released != kNone ? released : fresh++;
    if (number == released) released = holders[number].load(std::memory_order_relaxed);
    holders[number].store(1, std::memory_order_relaxed);
    return memory + number * stride;
  }
  void put(const std::byte* block) {
    --used;
    const uint32_t number = number_of(block);
    holders[number].store(released, std::memory_order_relaxed);
    released = number;
  }
};

namespace {

template <class Slab>
void link(Slab** first, Slab* slab) {
  slab->previous = nullptr;
  slab->next = *first;
  if (slab->next != nullptr) slab->next->previous = slab;
  *first = slab;
}

template <class Slab>
void unlink(Slab** first, Slab* slab) {
  if (slab->next != nullptr) slab->next->previous = slab->previous;
  (slab->previous != nullptr ? slab->previous->next : *first) = slab->next;
}

}  // namespace

SlabPool::SlabPool(MemorySource& source) : source_(source) {}

SlabPool::~SlabPool() {
  for (Size& size : sizes_) {
    Slab* slab = size.with_room;  // at most one, see release()
    if (slab != nullptr && slab->used == 0) free_slab(&size, slab);
    KVE_ASSERT(size.n_slabs == 0);
  }
  KVE_ASSERT(own_.empty());
}

SlabPool::Size* SlabPool::find_size(size_t stride) {
  for (Size& size : sizes_) {
    if (size.stride == stride) return &size;
  }
  return nullptr;
}

SlabPool::Size* SlabPool::add_size(size_t stride) {
  try {
    return &sizes_.emplace_back(Size{stride, 0, nullptr});
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

SlabPool::Slab& SlabPool::slab_of(const std::byte* block) const {
  const auto found = slabs_.find(place_of(block));
  KVE_ASSERT(found != slabs_.end());
  return *found->second;
}

SlabPool::Slab* SlabPool::new_slab(Size* size) {
  std::byte* memory = source_.allocate_pages(kSlabBytes, kSlabBytes);
  if (memory == nullptr) return nullptr;
  // Not for the first slab, so that a small cache does not occupy large pages.
  if (size->n_slabs > 0) source_.advise_large_pages(memory, kSlabBytes);
  try {
    const auto n_blocks = static_cast<uint32_t>(kSlabBytes / size->stride);
    auto slab = std::make_unique<Slab>(
        Slab{memory, size->stride, n_blocks, std::make_unique<Holders[]>(n_blocks)});
    Slab* made = slab.get();
    slabs_.emplace(place_of(memory), std::move(slab));
    ++size->n_slabs;
    return made;
  } catch (const std::bad_alloc&) {
    source_.release(memory, kSlabBytes, kSlabBytes);
    return nullptr;
  }
}

void SlabPool::free_slab(Size* size, Slab* slab) noexcept {
  std::byte* memory = slab->memory;
  slabs_.erase(place_of(memory));
  source_.release(memory, kSlabBytes, kSlabBytes);
  --size->n_slabs;
}

std::byte* SlabPool::allocate_own(size_t bytes) {
  std::byte* block = source_.allocate_pages(bytes, kAlignment);
  if (block == nullptr) return nullptr;
  try {
    const std::lock_guard lock(mutex_);
    own_.emplace(block, 1);
    return block;
  } catch (const std::bad_alloc&) {
    source_.release(block, bytes, kAlignment);
    return nullptr;
  }
}

std::byte* SlabPool::allocate(size_t bytes) {
  if (has_own_memory(bytes)) return allocate_own(bytes);
  const std::lock_guard lock(mutex_);
  const size_t stride = stride_of(bytes);
  Size* size = find_size(stride);
  if (size == nullptr) size = add_size(stride);
  if (size == nullptr) return nullptr;
  if (size->with_room == nullptr) {
    Slab* slab = new_slab(size);
    if (slab == nullptr) return nullptr;
    link(&size->with_room, slab);
  }
  Slab* slab = size->with_room;
  std::byte* block = slab->take();
  if (!slab->has_room()) unlink(&size->with_room, slab);
  return block;
}

void SlabPool::release(std::byte* block, size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  if (has_own_memory(bytes)) {
    own_.erase(block);
    return source_.release(block, bytes, kAlignment);
  }
  Slab* slab = &slab_of(block);
  Size* size = find_size(slab->stride);
  if (!slab->has_room()) link(&size->with_room, slab);
  slab->put(block);
  const bool only_one = slab->previous == nullptr && slab->next == nullptr;
  if (slab->used > 0 || only_one) return;
  unlink(&size->with_room, slab);
  free_slab(size, slab);
}

SlabPool::Holders& SlabPool::holders(const std::byte* block, size_t bytes) const {
  const std::lock_guard lock(mutex_);
  if (has_own_memory(bytes)) return const_cast<Holders&>(own_.find(block)->second);
  const Slab& slab = slab_of(block);
  return slab.holders[slab.number_of(block)];
}

size_t SlabPool::n_slabs() const {
  const std::lock_guard lock(mutex_);
  return slabs_.size();
}

}  // namespace kve
