// A page as kernels read it: plain data, so that per-ISA objects may include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kve {

struct PageView {
  const std::byte* data = nullptr;
  int32_t rows = 0;  // 1..kPageTokens
};

}  // namespace kve
