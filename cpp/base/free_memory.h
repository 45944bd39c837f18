// Giving back what an allocator holds for later.
#pragma once

#include <cstdint>

namespace kve {

// Released blocks of this size together are worth asking for their return.
inline constexpr int64_t kMuchMemory = int64_t{8} << 20;

// Returns to the system what was released to the allocator of the C library and lies between blocks
// that are in use, which it would keep; takes about a millisecond. Nothing where it cannot.
void give_back_free_memory() noexcept;

}  // namespace kve
