// Few inputs against interleaved weights (interleaved.h). A row of results does not depend, to the
// last bit, on how many inputs there are.
#include <string.h>

#include "kernels/cpu/isa/interleaved.h"

namespace kve::KVE_ISA {
namespace {

// One quantized input of `cols` columns.
struct Input {
  int8_t* codes;      // [cols]
  float* scales;      // [cols / 32]
  float* sums;        // [cols / 32]: the sum of the codes times their scale
  int32_t* starts8;   // [cols / 32]: -8 times the sum of the codes
  int32_t* starts16;  // [cols / 32]
  int32_t* bias;      // [cols / 32]: -kDotBias times
  int32_t* halves32;  // [cols / 16]: -32 times, of 16 codes
  size_t size;

  Input() = default;
  Input(std::byte* data, int64_t cols) {
    Carver carver(data);
    codes = carver.take<int8_t>(cols);
    scales = carver.take<float>(cols / 32);
    sums = carver.take<float>(cols / 32);
    starts8 = carver.take<int32_t>(cols / 32);
    starts16 = carver.take<int32_t>(cols / 32);
    bias = carver.take<int32_t>(cols / 32);
    halves32 = carver.take<int32_t>(cols / 16);
    size = carver.size();
  }

  // Derives the rest from codes and scales.
  void complete(int64_t cols) const {
    for (int64_t g = 0; g < cols / 32; ++g) {
      int32_t totals[2];
      code_sums(codes + 32 * g, totals);
      const int32_t total = totals[0] + totals[1];
      sums[g] = scales[g] * static_cast<float>(total);
      starts8[g] = -8 * total;
      starts16[g] = -16 * total;
      bias[g] = -kDotBias * total;
      halves32[2 * g] = -32 * totals[0];
      halves32[2 * g + 1] = -32 * totals[1];
    }
  }

  // What an integer dot product of part i (32 or 16 columns) starts with.
  template <class Codes, int kParts>
  int32_t start(int64_t i) const {
    if constexpr (!Codes::kSmall) {
      static_assert(kParts == 1);
      return bias[i];
    } else if constexpr (Codes::kZero == 8) {
      return starts8[i];
    } else if constexpr (Codes::kZero == 16) {
      return starts16[i];
    } else if constexpr (Codes::kZero == 32) {
      static_assert(kParts == 2);
      return halves32[i];
    } else {
      static_assert(Codes::kZero == 0);
      return 0;
    }
  }
};

// What will be read soon. Weights lie in the order of their use, so reading ahead goes on past the
// end of a chunk, and of a matrix.
struct Ahead {
  static constexpr int64_t kDistance = 6144;
  const std::byte* next;
  bool wanted;
  template <int kLines>
  inline void advance() {
    if (!wanted) return;
    KVE_UNROLL(64)
    for (int i = 0; i < kLines; ++i) prefetch_once(next + 64 * i);
    next += 64 * kLines;
  }
};

// Lines of all parts of a tile that one group uses, rounded up.
template <class Type>
constexpr int group_lines() {
  using Codes = typename Type::Codes;
  using Scales = typename Type::Scales;
  constexpr int kSides = Scales::kMin ? 2 : 1;
  constexpr int kPerGroup = Scales::kParts * Scales::kBytes * kTileRows + (Scales::kUnits ? 4 : 0);
  return (Codes::kLines * kLineBytes / Codes::kGroups + kSides * kPerGroup + 63) / 64;
}

}  // namespace

size_t tile_input_bytes(int64_t cols) { return Input(nullptr, cols).size; }

void quantize_for_tiles(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, int planes,
                        std::byte* dst) {
  const size_t bytes = tile_input_bytes(cols);
  for (int64_t t = 0; t < n_tokens; ++t) {
    std::byte* first = dst + static_cast<size_t>(t * planes) * bytes;
    const Input high(first, cols);
    const Input low(first + bytes, cols);
    quantize_values(x + t * stride, cols, high.codes, planes == 2 ? low.codes : nullptr,
                    high.scales);
    if (planes == 2) {
      for (int64_t g = 0; g < cols / 32; ++g) low.scales[g] = high.scales[g] / kPlaneRatio;
      low.complete(cols);
    }
    high.complete(cols);
  }
}

// sums[input][row], for rows v * kLanes ... of a tile. Not inlined: see gemm.cpp.
template <class Type, int kInputs>
__attribute__((noinline)) static void multiply_tile(const TileView& tile, int v, int64_t cols,
                                                    const Input* x, Ahead ahead,
                                                    float (*sums)[kTileRows]) {
  using Codes = typename Type::Codes;
  using Scales = typename Type::Scales;
  constexpr int kParts = Scales::kParts;
  constexpr int kWords = 8 / kParts;
  F32 acc[kInputs];
  KVE_UNROLL(8)
  for (int i = 0; i < kInputs; ++i) acc[i] = zero();
  const std::byte* step = tile.codes;
  for (int64_t first = 0; first < cols / 32; first += Codes::kGroups) {
    KVE_UNROLL(8)
    for (int g = 0; g < Codes::kGroups; ++g) {
      // A few lines at a time: the processor does not remember many.
      ahead.advance<group_lines<Type>()>();
      const int64_t group = first + g;
      I32 w[8];
      Codes::words(step, v, g, w);
      KVE_UNROLL(2)
      for (int part = 0; part < kParts; ++part) {
        const int64_t p = group * kParts + part;
        const F32 scale = Scales::scale(tile, p, v);
        KVE_UNROLL(8)
        for (int i = 0; i < kInputs; ++i) {
          const int8_t* codes = x[i].codes + 32 * group + 16 * part;
          I32 dot = set_i32(x[i].template start<Codes, kParts>(p));
          KVE_UNROLL(8)
          for (int j = 0; j < kWords; ++j) {
            const I32 values = broadcast_i32(codes + 4 * j);
            const I32 weights = w[part * kWords + j];
            dot = Codes::kSmall ? dot4_small(dot, weights, values) : dot4(dot, weights, values);
          }
          acc[i] = fma(to_f32(dot), scale * set(x[i].scales[group]), acc[i]);
        }
      }
      if constexpr (Scales::kMin) {
        const F32 minimum = Scales::minimum(tile, group, v);
        KVE_UNROLL(8)
        for (int i = 0; i < kInputs; ++i) acc[i] = fma(minimum, set(x[i].sums[group]), acc[i]);
      }
    }
    step += Codes::kLines * kLineBytes;
  }
  KVE_UNROLL(8)
  for (int i = 0; i < kInputs; ++i) store(sums[i] + v * kLanes, acc[i]);
}

// All rows of a tile with n inputs, at most kVecInputs.
template <class Type>
static void multiply_inputs(const TileView& tile, int64_t cols, const Input* x, int64_t n,
                            const Ahead& ahead, float (*sums)[kTileRows]) {
  for (int v = 0; v < kTileVectors; ++v) {
    const Ahead first{ahead.next, ahead.wanted && v == 0};
    if (n == 1) {
      multiply_tile<Type, 1>(tile, v, cols, x, first, sums);
    } else if (n == 2) {
      multiply_tile<Type, 2>(tile, v, cols, x, first, sums);
    } else if (n <= 4) {
      multiply_tile<Type, 4>(tile, v, cols, x, first, sums);
    } else {
      multiply_tile<Type, kVecInputs>(tile, v, cols, x, first, sums);
    }
  }
}

static void write_rows(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows, int planes,
                       const float (*sums)[kTileRows]) {
  for (int64_t t = 0; t < chunk.n_tokens; ++t) {
    float* y = chunk.y + t * chunk.y_stride + first_row;
    for (int64_t r = 0; r < n_rows; r += kLanes) {
      const int64_t n = least(n_rows - r, kLanes);
      F32 total = load(sums[t * planes] + r);
      if (planes == 2) total = total + load(sums[t * planes + 1] + r);
      if (chunk.bias != nullptr) total = total + load_n(chunk.bias + first_row + r, n);
      store_n(y + r, total, n);
    }
  }
}

template <class Type>
static void multiply(const MatmulChunk& chunk, const QuantizedInput& input) {
  const int64_t n_inputs = chunk.n_tokens * input.planes;
  const size_t input_bytes = tile_input_bytes(chunk.cols);
  Input x[kMaxTileInputs];
  for (int64_t i = 0; i < kMaxTileInputs; ++i) {
    // Spare inputs repeat the last one.
    x[i] = Input(const_cast<std::byte*>(input.data) +
                     static_cast<size_t>(least(i, n_inputs - 1)) * input_bytes,
                 chunk.cols);
  }
  const size_t tile_bytes = view_tile<Type>(nullptr, chunk.cols).size;
  const int64_t end_row = chunk.first_row + chunk.n_rows;
  alignas(64) float sums[kMaxTileInputs][kTileRows];
  for (int64_t r = chunk.first_row; r < end_row; r += kTileRows) {
    std::byte* data =
        const_cast<std::byte*>(chunk.tiles) + static_cast<size_t>(r / kTileRows) * tile_bytes;
    const TileView tile = view_tile<Type>(data, chunk.cols);
    for (int64_t i = 0; i < n_inputs; i += kVecInputs) {
      // Only the first inputs do not find the tile in the caches.
      const Ahead ahead{data + Ahead::kDistance, chunk.streams && i == 0};
      multiply_inputs<Type>(tile, chunk.cols, x + i, least(n_inputs - i, kVecInputs), ahead,
                            sums + i);
    }
    write_rows(chunk, r, least(end_row - r, kTileRows), input.planes, sums);
  }
}

void matvec_tiles(const MatmulChunk& chunk, const QuantizedInput& x) {
  with_interleaved(chunk.format->type, [&](auto kind) { multiply<decltype(kind)>(chunk, x); });
}

}  // namespace kve::KVE_ISA
