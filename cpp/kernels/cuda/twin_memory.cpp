#include "kernels/cuda/twin_memory.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <span>
#include <utility>

#include "base/error.h"
#include "kernels/cuda/page_copies.h"

namespace kve::cuda {
namespace {

constexpr size_t kSlabAlignment = 64;  // of a SlabPool's blocks
// Blocks change places for others that were read so many passes later: those of caches that take
// turns stay where they are.
constexpr int64_t kPassesOfAge = 64;
// Of the limit: what is made free when a block has no room, so that the next few have.
constexpr size_t kRoomShare = 16;

// Runs what may find no memory; whether it did.
template <class Run>
bool try_allocation(const Run& run) {
  try {
    run();
    return true;
  } catch (const CapacityError&) {
  } catch (const DeviceError&) {
  } catch (const std::bad_alloc&) {
  }
  return false;
}

}  // namespace

// ---- blocks ----

int64_t TwinMemory::Large::age() const { return passes_ / kPassesOfAge; }

// That of a block that went, if one was as large.
std::byte* TwinMemory::Large::lock(size_t bytes) {
  const auto same = std::ranges::find(released_, bytes, &Locked::bytes);
  if (same == released_.end()) return driver::lock(bytes);
  std::byte* memory = same->memory;
  released_.erase(same);
  return memory;
}

void TwinMemory::Large::forget_released() noexcept {
  for (const Locked& locked : released_) driver::unlock(locked.memory);
  released_.clear();
}

std::byte* TwinMemory::Large::make(size_t bytes, size_t alignment, bool pages) noexcept {
  std::byte* host = host_memory().allocate(bytes, alignment);
  if (host == nullptr) return nullptr;
  const std::lock_guard guard(mutex_);
  const bool made = try_allocation([&] {
    Block& block = blocks_[host];
    block.twin = {host, bytes};
    block.pages = pages;
    if (pages && limit_ > 0) {
      released_.reserve(released_.size() + blocks_.size());  // release() has to find room
      block.twin.spilled = pages_on_device_ + bytes > limit_;
      block.twin.read = &block.read;
      block.read = age();
      block.number = n_made_++;
    }
    block.twin.device = block.twin.spilled ? lock(bytes) : device_.allocate(bytes);
    if (pages) (block.twin.spilled ? pages_spilled_ : pages_on_device_) += bytes;
  });
  if (made) return host;
  blocks_.erase(host);
  host_memory().release(host, bytes, alignment);
  return nullptr;
}

std::byte* TwinMemory::Large::allocate(size_t bytes, size_t alignment) noexcept {
  return make(bytes, alignment, false);
}

std::byte* TwinMemory::Large::allocate_spillable(size_t bytes, size_t alignment) noexcept {
  return make(bytes, alignment, true);
}

void TwinMemory::Large::release(std::byte* memory, size_t bytes, size_t alignment) noexcept {
  {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(memory);
    KVE_ASSERT(found != blocks_.end());
    const auto& [twin, pages, number, read] = found->second;
    if (pages) (twin.spilled ? pages_spilled_ : pages_on_device_) -= twin.bytes;
    if (twin.spilled) {
      released_.push_back({twin.device, twin.bytes});
    } else {
      device_.release(twin.device, twin.bytes);
    }
    blocks_.erase(found);
    ++generation_;
  }
  host_memory().release(memory, bytes, alignment);
}

Twin TwinMemory::Large::find(const void* address) const {
  const std::lock_guard lock(mutex_);
  auto after = blocks_.upper_bound(static_cast<const std::byte*>(address));
  if (after == blocks_.begin()) return {};
  const Twin& twin = (--after)->second.twin;
  return twin.has(address) ? twin : Twin{};
}

bool TwinMemory::Large::holds_pages(const std::byte* memory) const {
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(memory);
  return found != blocks_.end() && found->second.pages;
}

// ---- what is spilled ----

// From those that were read last, the youngest first, on.
void TwinMemory::Large::list_pages(std::vector<Block*>* blocks) {
  for (auto& [host, block] : blocks_) {
    if (block.pages) blocks->push_back(&block);
  }
  std::ranges::sort(*blocks, [](const Block* a, const Block* b) {
    return std::pair(a->read.load(), a->number) > std::pair(b->read.load(), b->number);
  });
}

void TwinMemory::Large::spill(Block* block) {
  Twin& twin = block->twin;
  std::byte* locked = lock(twin.bytes);
  device_.download(locked, twin.device, twin.bytes);
  device_.release(twin.device, twin.bytes);
  twin.device = locked;
  twin.spilled = true;
  pages_on_device_ -= twin.bytes;
  pages_spilled_ += twin.bytes;
}

void TwinMemory::Large::bring_back(Block* block) {
  Twin& twin = block->twin;
  std::byte* device = device_.allocate(twin.bytes);
  device_.upload(device, twin.device, twin.bytes);
  device_.synchronize();
  released_.push_back({twin.device, twin.bytes});
  twin.device = device;
  twin.spilled = false;
  pages_spilled_ -= twin.bytes;
  pages_on_device_ += twin.bytes;
}

void TwinMemory::Large::rearrange() {
  const std::lock_guard guard(mutex_);
  ++passes_;
  forget_released();
  if (pages_spilled_ == 0) return;
  std::vector<Block*> blocks;
  list_pages(&blocks);
  size_t room = limit_ - limit_ / kRoomShare;
  size_t n_wanted = 0;
  while (n_wanted < blocks.size() && blocks[n_wanted]->twin.bytes <= room) {
    room -= blocks[n_wanted++]->twin.bytes;
  }
  const auto is_spilled = [](const Block* block) { return block->twin.spilled; };
  const auto wanted = std::span(blocks).first(n_wanted);
  if (std::ranges::none_of(wanted, is_spilled)) return;
  // Where there is no memory for that, pages are read where they are.
  try_allocation([&] {
    device_.synchronize();
    ++generation_;
    released_.reserve(released_.size() + 2 * blocks_.size());
    for (size_t i = blocks.size(); i-- > n_wanted;) {
      if (!is_spilled(blocks[i])) spill(blocks[i]);
    }
    for (Block* block : wanted) {
      if (is_spilled(block)) bring_back(block);
    }
  });
}

void TwinMemory::rearrange() {
  if (!is_limited()) return;
  const std::unique_lock lock(moves_);
  large_.rearrange();
}

// ---- the source ----

TwinMemory::TwinMemory(Device& device, size_t limit)
    : device_(device), large_(device, limit), small_(large_) {}

std::byte* TwinMemory::allocate(size_t bytes, size_t alignment) noexcept {
  return alignment <= kSlabAlignment ? small_.allocate(bytes) : large_.allocate(bytes, alignment);
}

std::byte* TwinMemory::allocate_pages(size_t bytes, size_t alignment) noexcept {
  return large_.allocate_spillable(bytes, alignment);
}

void TwinMemory::release(std::byte* memory, size_t bytes, size_t alignment) noexcept {
  if (alignment <= kSlabAlignment && !large_.holds_pages(memory)) {
    return small_.release(memory, bytes);
  }
  large_.release(memory, bytes, alignment);
}

std::byte* TwinMemory::place_to_write(const void* address) {
  const Twin twin = find(address);
  KVE_ASSERT(twin.bytes > 0);
  if (twin.spilled) ++writes_;
  return twin.at(address);
}

void TwinMemory::copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  const std::shared_lock lock(moves_);
  const bool to_spilled = find(to).spilled;
  std::byte* target = place_to_write(to);
  const Twin source = find(from);
  const bool from_host = source.bytes == 0 || source.spilled;
  if (to_spilled && from_host) {
    device_.synchronize();
    std::memmove(target, source.spilled ? source.at(from) : from, bytes);
  } else if (source.bytes > 0) {
    device_.copy(target, source.at(from), bytes);
  } else {
    device_.upload(target, from, bytes);
  }
}

void TwinMemory::zero(void* to, size_t bytes) {
  if (bytes == 0) return;
  const std::shared_lock lock(moves_);
  const bool spilled = find(to).spilled;
  std::byte* target = place_to_write(to);
  if (spilled) return zero_bytes(target, bytes);
  device_.zero(target, bytes);
}

void TwinMemory::fetch(const void* memory, size_t bytes) {
  const std::shared_lock lock(moves_);
  const Twin twin = find(memory);
  if (bytes == 0 || twin.bytes == 0) return;
  device_.synchronize();
  auto* to = const_cast<void*>(memory);
  if (twin.spilled) {
    std::memcpy(to, twin.at(memory), bytes);
  } else {
    device_.download(to, twin.at(memory), bytes);
  }
}

void TwinMemory::send(const void* memory, size_t bytes) {
  const std::shared_lock lock(moves_);
  if (bytes == 0 || find(memory).bytes == 0) return;
  const bool spilled = find(memory).spilled;
  std::byte* target = place_to_write(memory);
  if (!spilled) return device_.upload(target, memory, bytes);
  device_.synchronize();
  std::memcpy(target, memory, bytes);
}

MemoryPlace TwinMemory::place_of(const void* memory) const {
  const Twin twin = find(memory);
  if (twin.bytes == 0) return MemoryPlace::host;
  return twin.spilled ? MemoryPlace::spilled : MemoryPlace::device;
}

}  // namespace kve::cuda
