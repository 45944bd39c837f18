// Weights from the layout of the file to that of interleaved.h.
#include <string.h>

#include "kernels/cpu/isa/interleaved.h"

namespace kve::KVE_ISA {

size_t interleaved_tile_bytes(WeightType type, int64_t cols) {
  int64_t bytes = 0;
  with_interleaved(type, [&](auto kind) { bytes = tile_bytes<decltype(kind)>(cols); });
  return static_cast<size_t>(bytes);
}

// Entry `index` of a part of a block, for row r.
static inline std::byte* entry(std::byte* part, int64_t index, int r, int64_t bytes) {
  return part + (index * kTileRows + r) * bytes;
}
static inline void put_line(const BlockView& to, int64_t index, int r, const void* word) {
  memcpy(entry(to.codes, index, r, 4), word, 4);
}
static inline void put_lines(const BlockView& to, int64_t first, int n, int r, const void* words) {
  const auto* from = static_cast<const uint8_t*>(words);
#pragma GCC unroll 8
  for (int j = 0; j < n; ++j) put_line(to, first + j, r, from + 4 * j);
}
static inline void put_half(std::byte* part, int64_t index, int r, const uint8_t* half) {
  memcpy(entry(part, index, r, 2), half, 2);
}
static inline void put_byte(std::byte* part, int64_t index, int r, int value) {
  *entry(part, index, r, 1) = static_cast<std::byte>(value);
}

// Each place() writes row r of the block in the file that is number b of the block `to`.
static inline void place(const BlockQ4_0& block, const BlockView& to, int64_t b, int r) {
  put_half(to.scales, b, r, block.d);
  put_lines(to, 4 * b, 4, r, block.qs);
}
static inline void place(const BlockQ4_1& block, const BlockView& to, int64_t b, int r) {
  put_half(to.scales, b, r, block.d);
  put_half(to.mins, b, r, block.m);
  put_lines(to, 4 * b, 4, r, block.qs);
}
static inline void place(const BlockIQ4_NL& block, const BlockView& to, int64_t b, int r) {
  put_half(to.scales, b, r, block.d);
  put_lines(to, 4 * b, 4, r, block.qs);
}
static inline void place(const BlockMXFP4& block, const BlockView& to, int64_t b, int r) {
  const float scale = mxfp4_half_scale(block.e);
  uint32_t bits;
  memcpy(&bits, &scale, 4);
  const auto upper = static_cast<uint16_t>(bits >> 16);  // exact: a power of two
  memcpy(entry(to.scales, b, r, 2), &upper, 2);
  put_lines(to, 4 * b, 4, r, block.qs);
}

// Bit 4j + b of `bits` to bit j of byte b.
static inline uint32_t spread_bits(uint32_t bits) {
  uint32_t spread = 0;
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    // The four bits of one nibble, one to each byte.
    spread |= ((((bits >> (4 * j)) & 15) * 0x00204081u) & 0x01010101u) << j;
  }
  return spread;
}
template <class Block>
static inline void place_five_bits(const Block& block, const BlockView& to, int64_t b, int r) {
  put_lines(to, 5 * b, 4, r, block.qs);
  const uint32_t bits = spread_bits(load_u32(block.qh));
  put_line(to, 5 * b + 4, r, &bits);
}
static inline void place(const BlockQ5_0& block, const BlockView& to, int64_t b, int r) {
  put_half(to.scales, b, r, block.d);
  place_five_bits(block, to, b, r);
}
static inline void place(const BlockQ5_1& block, const BlockView& to, int64_t b, int r) {
  put_half(to.scales, b, r, block.d);
  put_half(to.mins, b, r, block.m);
  place_five_bits(block, to, b, r);
}
static inline void place(const BlockQ8_0& block, const BlockView& to, int64_t b, int r) {
  put_half(to.scales, b, r, block.d);
  int8_t codes[32];
  memcpy(codes, block.qs, 32);
  dot_bytes(codes);
  put_lines(to, 8 * b, 8, r, codes);
}

template <class Block>
static inline void place_k_scales(const Block& block, const BlockView& to, int64_t b, int r) {
  put_half(to.units, 0, r, block.d);
  put_half(to.units, 1, r, block.dmin);
  for (int g = 0; g < 8; ++g) {
    const KScale k = load_k_scale(block.scales, g);
    put_byte(to.scales, 8 * b + g, r, k.scale);
    put_byte(to.mins, 8 * b + g, r, k.min);
  }
}
static inline void place(const BlockQ4_K& block, const BlockView& to, int64_t b, int r) {
  place_k_scales(block, to, b, r);
  put_lines(to, 32 * b, 32, r, block.qs);
}
static inline void place(const BlockQ5_K& block, const BlockView& to, int64_t b, int r) {
  place_k_scales(block, to, b, r);
  put_lines(to, 40 * b, 32, r, block.qs);
  put_lines(to, 40 * b + 32, 8, r, block.qh);
}
static inline void place(const BlockQ6_K& block, const BlockView& to, int64_t b, int r) {
  put_half(to.units, 0, r, block.d);
  for (int i = 0; i < 16; ++i) put_byte(to.scales, 16 * b + i, r, block.scales[i]);
  for (int half = 0; half < 2; ++half) {
    put_lines(to, 48 * b + 24 * half, 16, r, block.ql + 64 * half);
    put_lines(to, 48 * b + 24 * half + 16, 8, r, block.qh + 32 * half);
  }
}
static inline void place(const BlockIQ4_XS& block, const BlockView& to, int64_t b, int r) {
  put_half(to.units, 0, r, block.d);
  for (int g = 0; g < 8; ++g) {
    const int low = (block.scales_l[g / 2] >> (4 * (g & 1))) & 15;
    const int high = (load_u16(block.scales_h) >> (2 * g)) & 3;
    put_byte(to.scales, 8 * b + g, r, (low | (high << 4)) - 32);
  }
  put_lines(to, 32 * b, 32, r, block.qs);
}

template <class Type>
static void interleave_tile(const InterleaveChunk& chunk, int64_t first_row, std::byte* dst) {
  using Block = typename Type::Block;
  constexpr int64_t kGroups = Block::kValues / 32;
  const int n_rows = static_cast<int>(least(chunk.rows - first_row, kTileRows));
  // Rows past the end stay zero: their scales make them count nothing.
  if (n_rows < kTileRows) memset(dst, 0, static_cast<size_t>(tile_bytes<Type>(chunk.cols)));
  const std::byte* rows = chunk.weight + static_cast<size_t>(first_row) * chunk.row_bytes;
  for (int64_t g = 0; g < chunk.cols / 32; g += kBlockGroups) {
    const int64_t n = least(chunk.cols / 32 - g, kBlockGroups);
    const BlockView to = view_block<Type>(dst, n);
    for (int64_t b = 0; b < n / kGroups; ++b) {
      for (int r = 0; r < n_rows; ++r) {
        const std::byte* row = rows + static_cast<size_t>(r) * chunk.row_bytes;
        place(reinterpret_cast<const Block*>(row)[g / kGroups + b], to, b, r);
      }
    }
    dst += block_bytes<Type>(n);
  }
}

void interleave(const InterleaveChunk& chunk) {
  with_interleaved(chunk.type, [&](auto kind) {
    const int64_t bytes = tile_bytes<decltype(kind)>(chunk.cols);
    for (int64_t t = chunk.first_tile; t < chunk.first_tile + chunk.n_tiles; ++t) {
      interleave_tile<decltype(kind)>(chunk, t * kTileRows, chunk.tiles + t * bytes);
    }
  });
}

}  // namespace kve::KVE_ISA
