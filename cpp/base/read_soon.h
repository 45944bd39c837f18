// Advice to the system about memory that files are mapped to.
#pragma once

#include <cstddef>
#include <span>

namespace kve {

// What lies within `part` will be read before long: the system may begin to bring it from the disk,
// without the caller waiting for what was read. Does nothing for other memory, and where there is
// no such advice.
void read_soon(std::span<const std::byte> part) noexcept;

}  // namespace kve
