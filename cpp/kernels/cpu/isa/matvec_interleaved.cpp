// Few inputs against interleaved weights (interleaved.h). A row of results does not depend, to the
// last bit, on how many inputs there are.
#include <string.h>

#include "kernels/cpu/isa/interleaved.h"

namespace kve::KVE_ISA {
namespace {

// 32 quantized values of an input, with what their integer dot products start with. Inputs lie side
// by side: [cols / 32][n_inputs], the planes of a token after each other.
struct InputGroup {
  int8_t codes[32];
  float scale;
  float sum;            // of the codes, times their scale; of both planes at the place of the first
  int32_t start8;       // -8 times the sum of the codes
  int32_t start16;      // -16 times
  int32_t bias;         // -kDotBias times
  int32_t halves32[2];  // -32 times, of 16 codes
  int32_t unused;

  // Derives the rest from codes and scale.
  void complete() {
    int32_t totals[2];
    code_sums(codes, totals);
    const int32_t total = totals[0] + totals[1];
    sum = scale * static_cast<float>(total);
    start8 = -8 * total;
    start16 = -16 * total;
    bias = -kDotBias * total;
    halves32[0] = -32 * totals[0];
    halves32[1] = -32 * totals[1];
    unused = 0;
  }

  template <class Codes, int kParts>
  int32_t start(int part) const {
    if constexpr (!Codes::kSmall) {
      static_assert(kParts == 1);
      return bias;
    } else if constexpr (Codes::kZero == 8) {
      return start8;
    } else if constexpr (Codes::kZero == 16) {
      return start16;
    } else if constexpr (Codes::kZero == 32) {
      static_assert(kParts == 2);
      return halves32[part];
    } else {
      static_assert(Codes::kZero == 0);
      return 0;
    }
  }
};
static_assert(sizeof(InputGroup) == 64);

// How far ahead of its use memory is asked for, as measured for either kind of prefetch_once().
// Weights lie in the order of their use, so this goes on past the end of a chunk, and of a matrix.
// Also where all weights would fit the last cache, which virtual machines share with others: seven
// tenths of the time there, while weights in the second cache take up to two hundredths longer.
#if defined(KVE_BF16_DOT)
constexpr int64_t kDistance = 6144;
#else
constexpr int64_t kDistance = 8192;
#endif

// Lines of a block that one group uses, rounded up.
template <class Type>
constexpr int kGroupLines = static_cast<int>(
    (block_bytes<Type>(kBlockGroups) + kBlockGroups * 64 - 1) / (kBlockGroups * 64));

template <int kLines>
inline void ask_for(const std::byte** ahead) {
  if (*ahead == nullptr) return;
  KVE_UNROLL(64)
  for (int i = 0; i < kLines; ++i) prefetch_once(*ahead + 64 * i);
  *ahead += 64 * kLines;
}

}  // namespace

size_t tile_input_bytes(int64_t cols) {
  return static_cast<size_t>(cols / 32) * sizeof(InputGroup);
}

void quantize_for_tiles(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, int planes,
                        std::byte* dst) {
  constexpr int64_t kGroups = 8;  // quantized at a time
  const int64_t n_inputs = n_tokens * planes;
  int8_t codes[2][32 * kGroups];
  float scales[kGroups];
  for (int64_t t = 0; t < n_tokens; ++t) {
    InputGroup* group = reinterpret_cast<InputGroup*>(dst) + t * planes;
    for (int64_t first = 0; first < cols / 32; first += kGroups) {
      const int64_t n = least(cols / 32 - first, kGroups);
      quantize_values(x + t * stride + 32 * first, 32 * n, codes[0],
                      planes == 2 ? codes[1] : nullptr, scales);
      for (int64_t g = 0; g < n; ++g, group += n_inputs) {
        memcpy(group[0].codes, codes[0] + 32 * g, 32);
        group[0].scale = scales[g];
        group[0].complete();
        if (planes == 1) continue;
        memcpy(group[1].codes, codes[1] + 32 * g, 32);
        group[1].scale = scales[g] / kPlaneRatio;
        group[1].complete();
        group[0].sum += group[1].sum;
      }
    }
  }
}

// Group `group` of a block, number g of its step, added to total[token]; v: rows v * kLanes ...
template <class Type, int kTokens, int kPlanes>
[[gnu::always_inline]] static inline void multiply_group(const BlockView& block, int v,
                                                         int64_t group, int g, const InputGroup* x,
                                                         F32 (&total)[kTokens]) {
  using Codes = typename Type::Codes;
  using Scales = typename Type::Scales;
  constexpr int kParts = Scales::kParts;
  constexpr int kInputs = kTokens * kPlanes;
  const std::byte* step = block.codes + group / Codes::kGroups * Codes::kLines * kLineBytes;
  KVE_UNROLL(2)
  for (int part = 0; part < kParts; ++part) {
    I32 dot[kInputs];
    KVE_UNROLL(8)
    for (int i = 0; i < kInputs; ++i) {
      dot[i] = set_i32(x[i].template start<Codes, kParts>(part));
    }
    KVE_UNROLL(8)
    for (int k = 0; k < 8 / kParts; ++k) {
      // Words that share a line of nibbles follow each other.
      const int j = kParts == 2 ? 4 * part + k : k % 2 * 4 + k / 2;
      const I32 word = Codes::word(step, v, g, j);
      KVE_UNROLL(8)
      for (int i = 0; i < kInputs; ++i) {
        const I32 values = broadcast_i32(x[i].codes + 4 * j);
        dot[i] = Codes::kSmall ? dot4_small(dot[i], word, values) : dot4(dot[i], word, values);
      }
    }
    const F32 scale = Scales::scale(block, group * kParts + part, v);
    KVE_UNROLL(8)
    for (int t = 0; t < kTokens; ++t) {
      const int last = t * kPlanes + kPlanes - 1;
      const I32 sum = kPlanes == 2 ? join_planes(dot[last - 1], dot[last]) : dot[last];
      total[t] = fma(to_f32(sum), scale * set(x[last].scale), total[t]);
    }
  }
  if constexpr (Scales::kMin) {
    const F32 minimum = Scales::minimum(block, group, v);
    KVE_UNROLL(8)
    for (int t = 0; t < kTokens; ++t) {
      total[t] = fma(minimum, set(x[t * kPlanes].sum), total[t]);
    }
  }
}

// Blocks of n_groups groups, added to sums[token][kTileRows]. Not inlined: see gemm.cpp.
template <class Type, int kTokens, int kPlanes>
__attribute__((noinline)) static void multiply_blocks(std::byte* data, int v, int64_t n_groups,
                                                      const std::byte* ahead, const InputGroup* x,
                                                      int64_t n_inputs, float* sums) {
  constexpr int kStepGroups = Type::Codes::kGroups;
  F32 total[kTokens];
  KVE_UNROLL(8)
  for (int t = 0; t < kTokens; ++t) total[t] = load(sums + t * kTileRows);
  for (int64_t done = 0; done < n_groups; done += kBlockGroups) {
    const int64_t n = least(n_groups - done, kBlockGroups);
    const BlockView block = view_block<Type>(data, n);
    data += block_bytes<Type>(n);
    for (int64_t first = 0; first < n; first += kStepGroups) {
      KVE_UNROLL(8)
      for (int g = 0; g < kStepGroups; ++g) {
        // A few lines at a time: the processor does not remember many.
        ask_for<kGroupLines<Type>>(&ahead);
        asm volatile("" ::: "memory");  // what groups share is read again, not kept on the stack
        multiply_group<Type, kTokens, kPlanes>(block, v, first + g, g, x, total);
        x += n_inputs;
      }
    }
  }
  KVE_UNROLL(8)
  for (int t = 0; t < kTokens; ++t) store(sums + t * kTileRows, total[t]);
}

// The same for any number of tokens, kVecInputs inputs at a time.
template <class Type, int kPlanes>
static void multiply_tokens(std::byte* data, int v, int64_t n_groups, const std::byte* ahead,
                            const InputGroup* x, int64_t n_tokens, float* sums) {
  constexpr int64_t kTokens = kVecInputs / kPlanes;
  const int64_t n_inputs = n_tokens * kPlanes;
  for (int64_t t = 0; t < n_tokens;) {
    const auto run = [&]<int kNow>() {
      multiply_blocks<Type, kNow, kPlanes>(data, v, n_groups, ahead, x + t * kPlanes, n_inputs,
                                           sums + t * kTileRows);
      t += kNow;
    };
    const int64_t n = least(n_tokens - t, kTokens);
    if (kTokens >= 8 && n >= 8) {
      run.template operator()<(kTokens >= 8 ? 8 : 1)>();
    } else if (kTokens >= 4 && n >= 4) {
      run.template operator()<(kTokens >= 4 ? 4 : 1)>();
    } else if (n >= 2) {
      run.template operator()<2>();
    } else {
      run.template operator()<1>();
    }
    ahead = nullptr;  // only the first tokens do not find the weights in the caches
  }
}

// All rows of a tile with all tokens: sums[token][kTileRows]. What several tokens or vectors read
// in turns is read block by block, so that it stays in the first cache meanwhile.
template <class Type, int kPlanes>
static void multiply_tile(std::byte* tile, int64_t cols, const InputGroup* x, int64_t n_tokens,
                          float* sums) {
  constexpr int64_t kTokens = kVecInputs / kPlanes;
  const bool once = kTileVectors == 1 && n_tokens <= kTokens && (n_tokens & (n_tokens - 1)) == 0;
  const int64_t n_at_once = once ? cols / 32 : kBlockGroups;
  memset(sums, 0, static_cast<size_t>(n_tokens * kTileRows) * sizeof(float));
  for (int64_t g = 0; g < cols / 32; g += n_at_once) {
    const int64_t n = least(cols / 32 - g, n_at_once);
    for (int v = 0; v < kTileVectors; ++v) {
      multiply_tokens<Type, kPlanes>(tile, v, n, v == 0 ? tile + kDistance : nullptr,
                                     x + g * n_tokens * kPlanes, n_tokens, sums + v * kLanes);
    }
    tile += block_bytes<Type>(kBlockGroups);
  }
}

static void write_rows(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                       const float* sums) {
  for (int64_t t = 0; t < chunk.n_tokens; ++t) {
    float* y = chunk.y + t * chunk.y_stride + first_row;
    for (int64_t r = 0; r < n_rows; r += kLanes) {
      const int64_t n = least(n_rows - r, kLanes);
      F32 total = load(sums + t * kTileRows + r);
      if (chunk.bias != nullptr) total = total + load_n(chunk.bias + first_row + r, n);
      store_n(y + r, total, n);
    }
  }
}

template <class Type, int kPlanes>
static void multiply(const MatmulChunk& chunk, const InputGroup* x) {
  const int64_t bytes = tile_bytes<Type>(chunk.cols);
  const int64_t end_row = chunk.first_row + chunk.n_rows;
  alignas(64) float sums[kMaxTileInputs * kTileRows];
  for (int64_t r = chunk.first_row; r < end_row; r += kTileRows) {
    std::byte* tile = const_cast<std::byte*>(chunk.tiles) + r / kTileRows * bytes;
    multiply_tile<Type, kPlanes>(tile, chunk.cols, x, chunk.n_tokens, sums);
    write_rows(chunk, r, least(end_row - r, kTileRows), sums);
  }
}

void matvec_tiles(const MatmulChunk& chunk, const QuantizedInput& input) {
  const auto* x = reinterpret_cast<const InputGroup*>(input.data);
  with_interleaved(chunk.format->type, [&](auto kind) {
    if (input.planes == 2) {
      multiply<decltype(kind), 2>(chunk, x);
    } else {
      multiply<decltype(kind), 1>(chunk, x);
    }
  });
}

}  // namespace kve::KVE_ISA
