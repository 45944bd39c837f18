#include "kernels/cpu/isa/tile_input.h"

#include <string.h>

namespace kve::KVE_ISA {

size_t tile_input_bytes(int64_t cols, int64_t n_tokens) {
  return TileInput(nullptr, cols / 32, n_tokens).size;
}

void quantize_for_tiles(const float* x, int64_t cols, int64_t token, int64_t n_tokens,
                        float least_error, std::byte* dst) {
  constexpr int64_t kStep = 16;  // groups quantized at a time
  const int64_t n_groups = cols / 32;
  const TileInput out(dst, n_groups, n_tokens);
  int8_t codes[32 * kStep];
  float scales[kStep];
  float squares = 0;
  InputGroup* group = out.first + token;
  for (int64_t g = 0; g < n_groups; g += kStep) {
    const int64_t n = least(n_groups - g, kStep);
    quantize_values(x + 32 * g, 32 * n, codes, nullptr, scales);
    for (int64_t i = 0; i < n; ++i, group += n_tokens) {
      memcpy(group->codes, codes + 32 * i, 32);
      group->scale = scales[i];
      group->complete();
      squares += scales[i] * scales[i];
    }
  }
  const float limit = plane_limit(squares, least_error, n_groups);
  group = out.first + token;
  InputGroup* second = out.second + token;
  for (int64_t g = 0; g < n_groups; ++g, group += n_tokens, second += n_tokens) {
    group->has_second = group->scale > limit;
    if (!group->has_second) continue;
    quantize_remainders(x + 32 * g, group->codes, group->scale, second->codes);
    second->scale = group->scale / kPlaneRatio;
    second->complete();
    group->sum += second->sum;
  }
}

void end_tile_input(int64_t cols, int64_t n_tokens, std::byte* input) {
  const TileInput out(input, cols / 32, n_tokens);
  int32_t n = 0;
  for (int64_t g = 0; g < cols / 32; ++g) {
    for (int64_t t = 0; t < n_tokens; ++t) {
      // Written in any case: no branch that cannot be foretold.
      out.seconds[n] = {static_cast<int32_t>(g), static_cast<int32_t>(t)};
      n += out.first[g * n_tokens + t].has_second;
    }
  }
  *out.n_seconds = n;
}

}  // namespace kve::KVE_ISA
