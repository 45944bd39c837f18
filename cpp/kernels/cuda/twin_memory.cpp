#include "kernels/cuda/twin_memory.h"

#include <new>

#include "base/error.h"

namespace kve::cuda {
namespace {

constexpr size_t kSlabAlignment = 64;  // of a SlabPool's blocks

}  // namespace

std::byte* TwinMemory::Large::allocate(size_t bytes, size_t alignment) noexcept {
  std::byte* host = host_memory().allocate(bytes, alignment);
  if (host == nullptr) return nullptr;
  std::byte* device = nullptr;
  try {
    device = device_.allocate(bytes);
    const std::lock_guard lock(mutex_);
    blocks_.emplace(host, Twin{host, bytes, device});
    return host;
  } catch (const CapacityError&) {
  } catch (const DeviceError&) {
  } catch (const std::bad_alloc&) {
  }
  if (device != nullptr) device_.release(device, bytes);
  host_memory().release(host, bytes, alignment);
  return nullptr;
}

void TwinMemory::Large::release(std::byte* memory, size_t bytes, size_t alignment) noexcept {
  {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(memory);
    KVE_ASSERT(found != blocks_.end());
    device_.release(found->second.device, found->second.bytes);
    blocks_.erase(found);
    ++generation_;
  }
  host_memory().release(memory, bytes, alignment);
}

Twin TwinMemory::Large::find(const void* address) const {
  const std::lock_guard lock(mutex_);
  auto after = blocks_.upper_bound(static_cast<const std::byte*>(address));
  if (after == blocks_.begin()) return {};
  const Twin& block = (--after)->second;
  return block.has(address) ? block : Twin{};
}

TwinMemory::TwinMemory(Device& device) : device_(device), large_(device), small_(large_) {}

std::byte* TwinMemory::allocate(size_t bytes, size_t alignment) noexcept {
  return alignment <= kSlabAlignment ? small_.allocate(bytes) : large_.allocate(bytes, alignment);
}

void TwinMemory::release(std::byte* memory, size_t bytes, size_t alignment) noexcept {
  if (alignment <= kSlabAlignment) return small_.release(memory, bytes);
  large_.release(memory, bytes, alignment);
}

void TwinMemory::copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  const Twin twin = find(to);
  KVE_ASSERT(twin.bytes > 0);
  std::byte* target = twin.at(to);
  const Twin source = find(from);
  if (source.bytes > 0) {
    device_.copy(target, source.at(from), bytes);
  } else {
    device_.upload(target, from, bytes);
  }
}

void TwinMemory::zero(void* to, size_t bytes) {
  if (bytes == 0) return;
  const Twin twin = find(to);
  KVE_ASSERT(twin.bytes > 0);
  device_.zero(twin.at(to), bytes);
}

void TwinMemory::fetch(const void* memory, size_t bytes) {
  const Twin twin = find(memory);
  if (bytes == 0 || twin.bytes == 0) return;
  device_.synchronize();
  device_.download(const_cast<void*>(memory), twin.at(memory), bytes);
}

void TwinMemory::send(const void* memory, size_t bytes) {
  const Twin twin = find(memory);
  if (bytes > 0 && twin.bytes > 0) device_.upload(twin.at(memory), memory, bytes);
}

}  // namespace kve::cuda
