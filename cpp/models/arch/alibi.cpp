#include "models/arch/alibi.h"

#include <bit>
#include <cmath>

namespace kve {

std::vector<float> alibi_slopes(int n_heads, double max_bias) {
  const auto whole = static_cast<int>(std::bit_floor(static_cast<unsigned>(n_heads)));
  std::vector<float> slopes;
  for (int h = 0; h < n_heads; ++h) {
    const double step = h < whole ? max_bias / whole : max_bias / (2 * whole);
    const int power = h < whole ? h + 1 : 2 * (h - whole) + 1;
    slopes.push_back(static_cast<float>(std::exp2(-step * power)));
  }
  return slopes;
}

}  // namespace kve
