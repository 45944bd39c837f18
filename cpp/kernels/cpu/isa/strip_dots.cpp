#include "kernels/cpu/isa/strip_dots.h"

namespace kve::KVE_ISA {

// Cells that are multiplied by the same words at the same time: as many as there are registers for
// their sums.
constexpr int kStripStreams = kLanes == 16 ? 4 : (kLanes == 8 ? 2 : 1);

namespace {

template <int kStreams>
struct Streams {};

}  // namespace

// What the products see: codes of 8 bits and entries of tables have a sign (see byte_cell).
template <int kBits, bool kTable>
constexpr bool kSignedCodes = kTable || kBits == 8;

template <int kBits, bool kTable>
__attribute__((always_inline)) static inline void unpack_levels(const std::byte* strip, int cell,
                                                                const int8_t* table, Cell& w) {
  unpack_cell<kBits>(strip, cell, w);
  if constexpr (kTable) {
#pragma GCC unroll 4
    for (int c = 0; c < kCellVectors; ++c) w[c] = lookup_bytes(table, w[c]);
  }
}

// acc[v][i] += w[i] times the v-th vector's word.
template <bool kSigned, int kVectors, int kStreams>
__attribute__((always_inline)) static inline void dot_streams(
    const I32 (&w)[kStreams][kCellVectors], const int8_t* x, int64_t x_stride,
    I32 (&acc)[kVectors][kStreams][kCellVectors]) {
#pragma GCC unroll 6
  for (int v = 0; v < kVectors; ++v) {
    const I32 word = broadcast_i32(x + v * x_stride);
#pragma GCC unroll 4
    for (int i = 0; i < kStreams; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < kCellVectors; ++c) {
        acc[v][i][c] =
            kSigned ? dot4(acc[v][i][c], w[i][c], word) : dot4_small(acc[v][i][c], w[i][c], word);
      }
    }
  }
}

template <int kVectors, int kStreams>
__attribute__((always_inline)) static inline void clear_sums(
    I32 (&acc)[kVectors][kStreams][kCellVectors]) {
#pragma GCC unroll 6
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int i = 0; i < kStreams; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < kCellVectors; ++c) acc[v][i][c] = set_i32(0);
    }
  }
}
template <int kVectors, int kStreams>
__attribute__((always_inline)) static inline void write_sums(
    const I32 (&acc)[kVectors][kStreams][kCellVectors], int32_t* dots, int64_t vector_step,
    int64_t stream_step) {
#pragma GCC unroll 6
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int i = 0; i < kStreams; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < kCellVectors; ++c) {
        store_i32(dots + v * vector_step + i * stream_step + kLanes * c, acc[v][i][c]);
      }
    }
  }
}

// Of what is not there, `instead` is asked for, which does no harm.
static inline CodesAhead begin_ahead(const CodesAhead& ahead, const std::byte* instead) {
  const std::byte* soon = ahead.soon == nullptr ? instead : ahead.soon;
  return {soon, ahead.later == nullptr ? soon : ahead.later};
}
static inline void end_ahead(const CodesAhead& at, CodesAhead* ahead) {
  if (ahead->soon != nullptr) ahead->soon = at.soon;
  if (ahead->later != nullptr) ahead->later = at.later;
}
template <int kBytes>
__attribute__((always_inline)) static inline void ask_ahead(CodesAhead& at) {
#pragma GCC unroll 4
  for (int b = 0; b < kBytes; b += 64) {
    prefetch_near(at.soon + b);
    prefetch_shared(at.later + b);
  }
  at.soon += kBytes;
  at.later += kBytes;
}

// One strip of keys.
template <int kBits, bool kTable, int kVectors, int kStreams>
__attribute__((always_inline)) static inline void key_step(
    const std::byte* strip, int first_cell, const int8_t* table, const int8_t* x, int64_t x_stride,
    CodesAhead& ahead, I32 (&acc)[kVectors][kStreams][kCellVectors]) {
  I32 w[kStreams][kCellVectors];
  const int cell = kStreams == 4 ? 0 : first_cell;  // all four: offsets are constants then
#pragma GCC unroll 4
  for (int i = 0; i < kStreams; ++i) {
    unpack_levels<kBits, kTable>(strip, cell + i, table, w[i]);
  }
  dot_streams<kSignedCodes<kBits, kTable>, kVectors, kStreams>(w, x, x_stride, acc);
  ask_ahead<8 * kStreams * kBits>(ahead);
}

// Not inlined, and nothing but the loop: GCC 12 keeps the sums in memory otherwise.
template <int kBits, bool kTable, int kVectors, int kStreams>
__attribute__((noinline)) static void key_loop(const StripDots& job, const std::byte* strip,
                                               int64_t n_strips, int first_cell,
                                               CodesAhead* ahead) {
  const int8_t* x = job.x;
  const int64_t x_stride = job.x_stride;
  const int8_t* table = job.table;
  CodesAhead at = begin_ahead(*ahead, strip);
  I32 acc[kVectors][kStreams][kCellVectors];
  clear_sums<kVectors, kStreams>(acc);
  for (int64_t s = 0; s < n_strips; ++s, x += 4, strip += 32 * kBits) {
    key_step<kBits, kTable, kVectors, kStreams>(strip, first_cell, table, x, x_stride, at, acc);
  }
  end_ahead(at, ahead);
  write_sums<kVectors, kStreams>(acc, job.dots + 16 * first_cell, 64, 16);
}

// The same for strips that have bits of their own.
template <int kVectors, int kStreams>
__attribute__((noinline)) static void mixed_key_loop(const StripDots& job, const std::byte* strip,
                                                     int64_t n_strips, int first_cell,
                                                     CodesAhead* ahead) {
  const int8_t* x = job.x;
  const int64_t x_stride = job.x_stride;
  const uint8_t* bits = job.strip_bits;
  CodesAhead at = begin_ahead(*ahead, strip);
  I32 acc[kVectors][kStreams][kCellVectors];
  clear_sums<kVectors, kStreams>(acc);
#define KVE_KEY_STEP(n)                                                                       \
  case n:                                                                                     \
    key_step<n, false, kVectors, kStreams>(strip, first_cell, nullptr, x, x_stride, at, acc); \
    break;
  for (int64_t s = 0; s < n_strips; ++s, x += 4) {
    switch (bits[s]) {
      KVE_KEY_STEP(1)
      KVE_KEY_STEP(2)
      KVE_KEY_STEP(3)
      KVE_KEY_STEP(4)
      KVE_KEY_STEP(5)
      KVE_KEY_STEP(6)
      KVE_KEY_STEP(7)
      KVE_KEY_STEP(8)
      default:
        break;
    }
    strip += 32 * bits[s];
  }
#undef KVE_KEY_STEP
  end_ahead(at, ahead);
  write_sums<kVectors, kStreams>(acc, job.dots + 16 * first_cell, 64, 16);
}

template <int kBits, bool kTable, int kVectors, int kStreams>
__attribute__((noinline)) static void value_loop(const StripDots& job, const std::byte* strip,
                                                 int64_t block, int first, int last,
                                                 CodesAhead* ahead) {
  constexpr int kStripBytes = 32 * kBits;
  const int64_t x_stride = job.x_stride;
  const int8_t* x = job.x + 16 * first;
  const int8_t* table = job.table;
  CodesAhead at = begin_ahead(*ahead, strip);
  strip += (4 * block + first) * kStripBytes;
  I32 acc[kVectors][kStreams][kCellVectors];
  clear_sums<kVectors, kStreams>(acc);
  for (int t = first; t < last; ++t, strip += kStripBytes) {
    for (int cell = 0; cell < 4; ++cell, x += 4) {
      I32 w[kStreams][kCellVectors];
#pragma GCC unroll 4
      for (int i = 0; i < kStreams; ++i) {
        unpack_levels<kBits, kTable>(strip + i * 4 * kStripBytes, cell, table, w[i]);
      }
      dot_streams<kSignedCodes<kBits, kTable>, kVectors, kStreams>(w, x, x_stride, acc);
      ask_ahead<8 * kStreams * kBits>(at);
    }
  }
  end_ahead(at, ahead);
  constexpr int kBlockDots = 16 * kStripVectors;
  write_sums<kVectors, kStreams>(acc, job.dots + block * kBlockDots, 16, kBlockDots);
}

// Some cells of strips that all have kBits, or, where that is 0, bits of their own.
template <int kBits, bool kTable, int kVectors>
static void keys_of(const StripDots& job, const std::byte* strips, int64_t n_strips, int cell,
                    int n_cells, CodesAhead* ahead) {
  const auto loop = [&]<int kStreams>(Streams<kStreams>) {
    if constexpr (kBits == 0) {
      mixed_key_loop<kVectors, kStreams>(job, strips, n_strips, cell, ahead);
    } else {
      key_loop<kBits, kTable, kVectors, kStreams>(job, strips, n_strips, cell, ahead);
    }
  };
  if constexpr (kStripStreams == 4) {
    if (n_cells == 4) return loop(Streams<4>());
  }
  const int end = cell + n_cells;
  if constexpr (kStripStreams >= 2) {
    for (; cell + 2 <= end; cell += 2) loop(Streams<2>());
  }
  for (; cell < end; ++cell) loop(Streams<1>());
}

template <int kBits, bool kTable, int kVectors>
static void values_of(const StripDots& job, const std::byte* strips, int64_t n_blocks, int first,
                      int end, CodesAhead* ahead) {
  int64_t b = 0;
  if constexpr (kStripStreams >= 4) {
    for (; b + 4 <= n_blocks; b += 4) {
      value_loop<kBits, kTable, kVectors, 4>(job, strips, b, first, end, ahead);
    }
  }
  if constexpr (kStripStreams >= 2) {
    for (; b + 2 <= n_blocks; b += 2) {
      value_loop<kBits, kTable, kVectors, 2>(job, strips, b, first, end, ahead);
    }
  }
  for (; b < n_blocks; ++b) {
    value_loop<kBits, kTable, kVectors, 1>(job, strips, b, first, end, ahead);
  }
}

namespace {

using KeyLoop = void (*)(const StripDots& job, const std::byte* strips, int64_t n_strips, int cell,
                         int n_cells, CodesAhead* ahead);
using ValueLoop = void (*)(const StripDots& job, const std::byte* strips, int64_t n_blocks,
                           int first, int end, CodesAhead* ahead);

}  // namespace

template <int kBits, bool kTable>
static KeyLoop key_loop_for(int64_t n_vectors) {
  if constexpr (kStripVectors >= 6) {
    if (n_vectors == 6) return keys_of<kBits, kTable, 6>;
  }
  if constexpr (kStripVectors >= 4) {
    if (n_vectors == 4) return keys_of<kBits, kTable, 4>;
    if (n_vectors == 3) return keys_of<kBits, kTable, 3>;
  }
  return n_vectors == 2 ? keys_of<kBits, kTable, 2> : keys_of<kBits, kTable, 1>;
}
template <int kBits, bool kTable>
static ValueLoop value_loop_for(int64_t n_vectors) {
  if constexpr (kStripVectors >= 6) {
    if (n_vectors == 6) return values_of<kBits, kTable, 6>;
  }
  if constexpr (kStripVectors >= 4) {
    if (n_vectors == 4) return values_of<kBits, kTable, 4>;
    if (n_vectors == 3) return values_of<kBits, kTable, 3>;
  }
  return n_vectors == 2 ? values_of<kBits, kTable, 2> : values_of<kBits, kTable, 1>;
}

void dot_keys(const StripDots& job, const std::byte* strips, int64_t n_strips, int first_cell,
              int n_cells, CodesAhead* ahead) {
  const KeyLoop loop =
      job.strip_bits != nullptr
          ? key_loop_for<0, false>(job.n_vectors)
          : with_code_bits(job.bits, job.table != nullptr, [&]<int kBits, bool kTable>() {
              return key_loop_for<kBits, kTable>(job.n_vectors);
            });
  loop(job, strips, n_strips, first_cell, n_cells, ahead);
}

void dot_values(const StripDots& job, const std::byte* strips, int64_t n_blocks, int first, int end,
                CodesAhead* ahead) {
  const ValueLoop loop = with_code_bits(
      job.bits, job.table != nullptr,
      [&]<int kBits, bool kTable>() { return value_loop_for<kBits, kTable>(job.n_vectors); });
  loop(job, strips, n_blocks, first, end, ahead);
}

}  // namespace kve::KVE_ISA
