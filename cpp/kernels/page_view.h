// A page as kernels read it: plain data, so that per-ISA objects may include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kve {

struct PageView {
  const std::byte* data = nullptr;
  int32_t bytes = 0;
  int16_t rows = 0;  // 1..kPageTokens
  // How its rows are written: number of the basis * tiers of the side + tier.
  int16_t basis = 0;
};

}  // namespace kve
