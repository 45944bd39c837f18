// Few inputs against quantized weights: each weight row is unpacked once, straight from its file
// layout, and multiplied with every input.
#include <string.h>

#include "kernels/cpu/isa/isa.h"
#include "kernels/cpu/isa/unpack.h"
#include "kernels/cpu/isa/vector_input.h"

namespace kve::KVE_ISA {

size_t vector_bytes(int64_t cols) { return static_cast<size_t>(VectorInput::bytes(cols)); }

void quantize_rows(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, int planes,
                   std::byte* dst) {
  for (int64_t t = 0; t < n_tokens; ++t) {
    std::byte* first = dst + t * planes * VectorInput::bytes(cols);
    const VectorInput high(first, cols);
    const VectorInput low(first + VectorInput::bytes(cols), cols);
    quantize_values(x + t * stride, cols, high.codes, planes == 2 ? low.codes : nullptr,
                    high.scales);
    if (planes == 2) {
      for (int64_t g = 0; g < cols / 32; ++g) low.scales[g] = high.scales[g] / kPlaneRatio;
      low.complete(cols);
    }
    high.complete(cols);
  }
}

size_t matvec_scratch(int64_t cols) { return static_cast<size_t>(cols / 32) * sizeof(CodeGroup); }

static float dot_groups(const CodeGroup* groups, int64_t n_groups, const VectorInput& x,
                        bool has_min) {
  // Two chains of sums, so that one can start while the other waits.
  GroupAcc acc[2] = {group_zero(), group_zero()};
  float minima[4] = {};
  for (int64_t first = 0; first < n_groups; first += 2) {
    KVE_UNROLL(2)
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t g = first + i;
      if (g == n_groups) break;
      const CodeGroup& group = groups[g];
      const float d = x.scales[g];
      acc[i] =
          group_dot(acc[i], group.codes, x.codes + 32 * g, group.scale[0] * d, group.scale[1] * d);
      if (has_min) {
        minima[2 * i] += group.min[0] * x.sums[2 * g];
        minima[2 * i + 1] += group.min[1] * x.sums[2 * g + 1];
      }
    }
  }
  return (sum(acc[0]) + sum(acc[1])) + ((minima[0] + minima[1]) + (minima[2] + minima[3]));
}

void matvec(const MatmulChunk& chunk, const QuantizedInput& x) {
  if (matvec_native(chunk, x)) return;
  const int64_t n_groups = chunk.cols / 32;
  const int64_t bytes = VectorInput::bytes(chunk.cols);
  CodeGroup* groups = reinterpret_cast<CodeGroup*>(chunk.scratch);
  for (int64_t r = chunk.first_row; r < chunk.first_row + chunk.n_rows; ++r) {
    unpack(*chunk.format, chunk.weight + static_cast<size_t>(r) * chunk.row_bytes, 0, n_groups,
           groups);
    for (int64_t t = 0; t < chunk.n_tokens; ++t) {
      float total = chunk.bias == nullptr ? 0.0f : chunk.bias[r];
      for (int p = 0; p < x.planes; ++p) {
        const VectorInput input(const_cast<std::byte*>(x.data) + (t * x.planes + p) * bytes,
                                chunk.cols);
        total += dot_groups(groups, n_groups, input, chunk.format->has_min);
      }
      chunk.y[t * chunk.y_stride + r] = total;
    }
  }
}

}  // namespace kve::KVE_ISA
