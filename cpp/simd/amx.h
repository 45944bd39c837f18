// The tile unit of Intel's processors (AMX): eight registers of 16 rows of 64 bytes. Only for
// sources of the set that has it (KVE_ISA_AMX). Written as assembly because GCC 12's functions do
// not tell the compiler which memory they read, so that it leaves out stores before them.
#pragma once

#include <stdint.h>

namespace kve::KVE_ISA {

constexpr int kTileUnitRows = 16;
constexpr int kTileUnitBytes = 16 * 64;

namespace {

// Gives this thread's tile registers the shape of the functions below while it lives, and then the
// shape that they had: other libraries of the process may rely on theirs. What they hold is lost.
// The first five may have fewer rows, for sums and left sides of fewer.
class TileUnit {
 public:
  explicit TileUnit(int rows = kTileUnitRows) {
    asm volatile("sttilecfg %0" : "=m"(before_) : : "memory");
    Shape shape;
    for (int i = 0; i < 5; ++i) shape.rows[i] = static_cast<uint8_t>(rows);
    asm volatile("ldtilecfg %0" : : "m"(shape) : "memory");
  }
  ~TileUnit() { asm volatile("ldtilecfg %0" : : "m"(before_) : "memory"); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

 private:
  struct Shape {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static_assert(sizeof(Shape) == 64);
  Shape before_;
};

}  // namespace

template <int kTile>
static inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// Rows of 64 bytes, `stride` bytes apart.
template <int kTile>
static inline void load_tile(const void* data, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(data), "r"(stride), "i"(kTile) : "memory");
}
// The same of a stream: it does not displace what the first cache holds.
template <int kTile>
static inline void stream_tile(const void* data, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(data), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
static inline void store_tile(void* data, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(data), "r"(stride), "i"(kTile) : "memory");
}
// kSum[m][n] += the dot products of row m of kA and column n of kB: 16 pairs of bf16 numbers, those
// of column n being the n-th of each row. Denormals count as zero.
template <int kSum, int kA, int kB>
static inline void dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace kve::KVE_ISA
