#include "base/read_soon.h"

#include <algorithm>
#include <cstdint>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define KVE_HAS_MMAP 1
#endif

namespace kve {

void read_soon([[maybe_unused]] std::span<const std::byte> part) noexcept {
#ifdef KVE_HAS_MMAP
  if (part.empty()) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(part.data()) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(part.data()) + part.size();
  // Linux cuts each request to what it reads ahead at most, 128 KB by default.
  constexpr uintptr_t kRequest = 128 << 10;
  for (uintptr_t at = start; at < end; at += kRequest) {
    ::madvise(reinterpret_cast<void*>(at), std::min(end - at, kRequest), MADV_WILLNEED);
  }
#endif
}

}  // namespace kve
