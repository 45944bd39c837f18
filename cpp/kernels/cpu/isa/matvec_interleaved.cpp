// Few inputs against interleaved weights (interleaved.h). A row of results does not depend, to the
// last bit, on how many inputs there are.
#include <string.h>

#include "kernels/cpu/isa/interleaved.h"
#include "kernels/cpu/isa/tile_input.h"

namespace kve::KVE_ISA {
namespace {

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
  for (int i = 0; i < kLines; ++i) {
    prefetch_once(*ahead + 64 * i);
    if (kNearBytes > 0) prefetch_near(*ahead - kDistance + kNearBytes + 64 * i);
  }
  *ahead += 64 * kLines;
}

}  // namespace

// Group `group` of a block, number g of its step, added to total[token]; v: rows v * kLanes ...
// Of second planes the minima are not wanted: sums of inputs are those of both planes.
template <class Type, int kTokens, bool kSecond = false>
[[gnu::always_inline]] static inline void multiply_group(const BlockView& block, int v,
                                                         int64_t group, int g, const InputGroup* x,
                                                         F32 (&total)[kTokens]) {
  using Codes = typename Type::Codes;
  using Scales = typename Type::Scales;
  constexpr int kParts = Scales::kParts;
  constexpr Sums kSums = sums_of(Scales::kHasOffsets);
  const std::byte* step = block.codes + group / Codes::kGroups * Codes::kLines * kLineBytes;
  KVE_UNROLL(2)
  for (int part = 0; part < kParts; ++part) {
    I32 dot[kTokens];
    KVE_UNROLL(8)
    for (int t = 0; t < kTokens; ++t) {
      dot[t] = set_i32(x[t].template start<Codes, kParts>(part));
    }
    KVE_UNROLL(8)
    for (int k = 0; k < 8 / kParts; ++k) {
      // Words that share a line of nibbles follow each other.
      const int j = kParts == 2 ? 4 * part + k : k % 2 * 4 + k / 2;
      const I32 word = Codes::word(step, v, g, j);
      KVE_UNROLL(8)
      for (int t = 0; t < kTokens; ++t) {
        const I32 values = broadcast_i32(x[t].codes + 4 * j);
        dot[t] = Codes::kSmall ? dot4_small(dot[t], word, values) : dot4(dot[t], word, values);
      }
    }
    const F32 scale = Scales::scale(block, group * kParts + part, v);
    const F32 offset = kSums == Sums::fused ? scale * set(-kFloatStart) : zero();
    KVE_UNROLL(8)
    for (int t = 0; t < kTokens; ++t) {
      total[t] = fma(scaled<kSums>(dot[t], scale, offset), set(x[t].scale), total[t]);
    }
  }
  if constexpr (Scales::kMin && !kSecond) {
    const F32 minimum = Scales::minimum(block, group, v);
    KVE_UNROLL(8)
    for (int t = 0; t < kTokens; ++t) total[t] = fma(minimum, set(x[t].sum), total[t]);
  }
}

// Blocks of n_groups groups, added to sums[token][kTileRows]. Not inlined: see gemm.cpp.
template <class Type, int kTokens>
__attribute__((noinline)) static void multiply_blocks(std::byte* data, int v, int64_t n_groups,
                                                      const std::byte* ahead, const InputGroup* x,
                                                      int64_t n_tokens, float* sums) {
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
        multiply_group<Type, kTokens>(block, v, first + g, g, x, total);
        x += n_tokens;
      }
    }
  }
  KVE_UNROLL(8)
  for (int t = 0; t < kTokens; ++t) store(sums + t * kTileRows, total[t]);
}

// The same for any number of tokens, kVecInputs at a time.
template <class Type>
static void multiply_tokens(std::byte* data, int v, int64_t n_groups, const std::byte* ahead,
                            const InputGroup* x, int64_t n_tokens, float* sums) {
  for (int64_t t = 0; t < n_tokens;) {
    const auto run = [&]<int kNow>() {
      multiply_blocks<Type, kNow>(data, v, n_groups, ahead, x + t, n_tokens, sums + t * kTileRows);
      t += kNow;
    };
    const int64_t n = least(n_tokens - t, kVecInputs);
    if (kVecInputs >= 8 && n >= 8) {
      run.template operator()<(kVecInputs >= 8 ? 8 : 1)>();
    } else if (n >= 4) {
      run.template operator()<4>();
    } else if (n >= 2) {
      run.template operator()<2>();
    } else {
      run.template operator()<1>();
    }
    ahead = nullptr;  // only the first tokens do not find the weights in the caches
  }
}

// Second planes, added to the sums of a tile: few as a rule, so one by one. Groups are counted at
// run time here.
template <class Type>
__attribute__((noinline)) static void add_seconds(std::byte* tile, int64_t n_groups,
                                                  const SecondPlane* listed, int64_t n_listed,
                                                  const InputGroup* x, int64_t n_tokens,
                                                  float* sums) {
  for (const SecondPlane* each = listed; each < listed + n_listed; ++each) {
    const int64_t first = each->group / kBlockGroups * kBlockGroups;
    const int64_t group = each->group - first;
    const BlockView block =
        view_block<Type>(tile + each->group / kBlockGroups * block_bytes<Type>(kBlockGroups),
                         least(n_groups - first, kBlockGroups));
    KVE_UNROLL(2)
    for (int v = 0; v < kTileVectors; ++v) {
      float* sum = sums + each->token * kTileRows + v * kLanes;
      F32 total[1] = {load(sum)};
      multiply_group<Type, 1, true>(block, v, group, static_cast<int>(group % Type::Codes::kGroups),
                                    x + each->group * n_tokens + each->token, total);
      store(sum, total[0]);
    }
  }
}

// All rows of a tile with all tokens: sums[token][kTileRows]. What several tokens or vectors read
// in turns is read block by block, so that it stays in the first cache meanwhile.
template <class Type>
static void multiply_tile(std::byte* tile, int64_t n_groups, const TileInput& x, int64_t n_tokens,
                          float* sums) {
  const bool once = kTileVectors == 1 && n_tokens <= kVecInputs && (n_tokens & (n_tokens - 1)) == 0;
  const int64_t n_at_once = once ? n_groups : kBlockGroups;
  memset(sums, 0, static_cast<size_t>(n_tokens * kTileRows) * sizeof(float));
  std::byte* block = tile;
  for (int64_t g = 0; g < n_groups; g += n_at_once) {
    const int64_t n = least(n_groups - g, n_at_once);
    for (int v = 0; v < kTileVectors; ++v) {
      multiply_tokens<Type>(block, v, n, v == 0 ? block + kDistance : nullptr,
                            x.first + g * n_tokens, n_tokens, sums + v * kLanes);
    }
    block += block_bytes<Type>(kBlockGroups);
  }
  // Behind all first planes, so that the order of sums is the same for any number of tokens.
  add_seconds<Type>(tile, n_groups, x.seconds, *x.n_seconds, x.second, n_tokens, sums);
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

void matvec_tiles(const MatmulChunk& chunk, const std::byte* input) {
  const int64_t n_groups = chunk.cols / 32;
  const TileInput x(const_cast<std::byte*>(input), n_groups, chunk.n_tokens);
  const int64_t end_row = chunk.first_row + chunk.n_rows;
  with_interleaved(chunk.format->type, [&](auto kind) {
    using Type = decltype(kind);
    const int64_t bytes = tile_bytes<Type>(chunk.cols);
    alignas(64) float sums[kMaxTileInputs * kTileRows];
    for (int64_t r = chunk.first_row; r < end_row; r += kTileRows) {
      std::byte* tile = const_cast<std::byte*>(chunk.tiles) + r / kTileRows * bytes;
      multiply_tile<Type>(tile, n_groups, x, chunk.n_tokens, sums);
      write_rows(chunk, r, least(end_row - r, kTileRows), sums);
    }
  });
}

}  // namespace kve::KVE_ISA
