// Where bytes lie that a device works on: weights, activations, and the pages and tails of caches.
// The host's memory; or a device's, where every block has a twin in the host's memory, by whose
// addresses it goes. The twin's bytes are those of the device after fetch(), and the device's those
// of the twin after send(); all else that is done with the bytes is left to the device, copies and
// zeros as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kve {

// What bytes are in: the host's memory; a device's; or memory of the host that the device reads,
// because its own has a limit.
enum class MemoryPlace : uint8_t { host, device, spilled };

// This class is the host's memory. Thread-safe, as are those that derive from it.
class MemorySource {
 public:
  MemorySource() = default;
  MemorySource(const MemorySource&) = delete;
  MemorySource& operator=(const MemorySource&) = delete;
  virtual ~MemorySource() = default;

  // `alignment` is a power of two. Not initialised; null when there is no memory left.
  virtual std::byte* allocate(size_t bytes, size_t alignment) noexcept;
  // The same for pages of caches, which are written once and read in every step: those that a limit
  // of a device's memory has no room for lie in the host's.
  virtual std::byte* allocate_pages(size_t bytes, size_t alignment) noexcept;
  // As it was allocated.
  virtual void release(std::byte* memory, size_t bytes, size_t alignment) noexcept;
  // Asks for large pages wherever a block holds whole ones. Advice only: failing changes nothing
  // but speed.
  virtual void advise_large_pages(std::byte* memory, size_t bytes) noexcept;

  // After all that the caller's thread had a device do before, and before what it has it do next.
  // `to` is from this source, `from` may be the host's; the two places may overlap. Throws
  // DeviceError.
  virtual void copy(void* to, const void* from, size_t bytes);
  virtual void zero(void* to, size_t bytes);
  // Before the host reads bytes that a device may have written, and after the host has written
  // them. Addresses that are not from this source are the host's, and are there. Throws
  // DeviceError.
  virtual void fetch(const void* /*memory*/, size_t /*bytes*/) {}
  virtual void send(const void* /*memory*/, size_t /*bytes*/) {}
  // Where an address of this source is.
  virtual MemoryPlace place_of(const void* /*memory*/) const { return MemoryPlace::host; }
  // Until a device has done all that any thread had it do. Throws DeviceError.
  virtual void wait() {}
};

MemorySource& host_memory();

}  // namespace kve
