// Tiles of rows for matrix products, in f32 or in pairs of bf16: what attention of many queries
// (attend_tiles.cpp) and the weights that rows get from them (attend_mass.cpp) share.
#pragma once

#include <string.h>

#include "kernels/cpu/isa/attend.h"
#include "kernels/cpu/isa/coded_tiles.h"
#include "kernels/cpu/isa/side_reader.h"

namespace kve::KVE_ISA {

namespace {

// A tile in f32.
struct F32Tile {
  static constexpr bool kRounded = false;
  static constexpr int kPerElement = 1;  // values per 32-bit element
  static constexpr auto kProduct = gemm;
};

#if defined(KVE_BF16_DOT)
// A tile in bf16; an element holds two neighbouring columns of the keys, or two rows of the values.
struct Bf16Tile {
  static constexpr bool kRounded = true;
  static constexpr int kPerElement = 2;
  static constexpr auto kProduct = gemm_bf16;
};
#endif

// Scratch memory of rows of one side.
struct TileRows {
  int64_t stride;  // values
  float* rows;     // [kTile][stride], f32 or bf16, in order
  float* coded;    // [kTile][width]
};

}  // namespace

static inline TileRows carve_rows(Carver& carver, int64_t stride) {
  float* rows = carver.take<float>(kTile * stride);
  return {stride, rows, carver.take<float>(kTile * stride)};
}

static inline void store_value(float* to, F32 values) { store(to, values); }
#if defined(KVE_BF16_DOT)
static inline void store_value(uint16_t* to, F32 values) { store_bf16(to, values); }
#endif

// One row to f32 or bf16, zero up to `stride`.
template <CodecId kType, class Value>
static void write_row(const std::byte* data, int64_t width, Value* dst, int64_t stride) {
  const auto* from = row_values<kType>(data);
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store_value(dst + d, load_values<kType>(from + d));
  if (d < width) {
    store_value(dst + d, load_values_n<kType>(from + d, width - d));
    d += kLanes;
  }
  for (; d < stride; d += kLanes) store_value(dst + d, zero());
}

template <class Tile, CodecId kType>
static void convert_row(const std::byte* data, int64_t width, float* rows, int64_t index,
                        int64_t stride) {
#if defined(KVE_BF16_DOT)
  if constexpr (Tile::kRounded) {
    uint16_t* to = reinterpret_cast<uint16_t*>(rows) + index * stride;
    return write_row<kType>(data, width, to, stride);
  }
#endif
  write_row<kType>(data, width, rows + index * stride, stride);
}

// Rows [base, base + n) of a side to the tile.
template <class Tile>
static void read_rows(const TileRows& tile, SideReader& reader, int width, int32_t base,
                      int32_t n) {
  for (int32_t done = 0; done < n;) {
    const RowRun run = reader.read(base + done, n - done, tile.coded, kTile);
    const int64_t bytes = run.stride * (run.type == CodecId::f32 ? 4 : 2);
    for (int32_t r = 0; r < run.rows; ++r, ++done) {
      const std::byte* row = run.data + r * bytes;
      if (run.type == CodecId::f16) {
        convert_row<Tile, CodecId::f16>(row, width, tile.rows, done, tile.stride);
      } else if (run.type == CodecId::bf16) {
        convert_row<Tile, CodecId::bf16>(row, width, tile.rows, done, tile.stride);
      } else {
        convert_row<Tile, CodecId::f32>(row, width, tile.rows, done, tile.stride);
      }
    }
  }
}

// The elements keys[d / kPerElement][kTile] of the rows, transposed. Rows past the n-th are left
// over from before: their scores are not used.
template <class Tile>
static void load_key_tile(const TileRows& tile, float* keys, SideReader& reader, int width,
                          int32_t base, int32_t n) {
  read_rows<Tile>(tile, reader, width, base, n);
  const int64_t stride = tile.stride / Tile::kPerElement;
  const int64_t elements = round_up(width, kLanes * Tile::kPerElement) / Tile::kPerElement;
  for (int32_t r = 0; r < n; r += kLanes) {
    for (int64_t d = 0; d < elements; d += kLanes) {
      F32 square[kLanes];
      KVE_UNROLL(16)
      for (int i = 0; i < kLanes; ++i) square[i] = load(tile.rows + (r + i) * stride + d);
      transpose(square);
      KVE_UNROLL(16)
      for (int i = 0; i < kLanes; ++i) store(keys + (d + i) * kTile + r, square[i]);
    }
  }
}

// The keys of the page that begins at row `base`, or of the n rows from there on.
template <class Tile>
static void read_key_tile(const AttendChunk& chunk, CodedTiles* tiles, const TileRows& rows,
                          float* keys, SideReader& reader, int32_t base, int32_t n) {
  const PageView* page = reader.coded_page(base, n);
  if (page != nullptr &&
      read_coded_keys(tiles, chunk.k, *page, {base, chunk.first_pos}, Tile::kRounded, keys)) {
    return;
  }
  load_key_tile<Tile>(rows, keys, reader, chunk.k.width, base, n);
}

#if defined(KVE_BF16_DOT)
static inline void round_queries(const AttendState& state, int64_t query_stride, float* queries) {
  auto* to = reinterpret_cast<uint16_t*>(queries);
  for (int64_t v = 0; v < state.n_vectors; ++v, to += 2 * query_stride) {
    const float* from = state.queries + v * state.key_stride;
    write_row<CodecId::f32>(reinterpret_cast<const std::byte*>(from), state.key_stride, to,
                            2 * query_stride);
  }
}
#endif

// Whether all n rows from `base` are seen by both tokens, so that no score needs a limit; or none
// by any token between them.
static inline bool all_visible(const AttendChunk& chunk, int32_t first_pos, int32_t last_pos,
                               int32_t base, int32_t n) {
  const Visible a = visible_rows(chunk, first_pos, base, n);
  const Visible b = visible_rows(chunk, last_pos, base, n);
  return n % kLanes == 0 && a.first == 0 && a.end == n && b.first == 0 && b.end == n &&
         dead_rows(chunk, base, n) == 0;
}
static inline bool none_visible(const AttendChunk& chunk, int32_t first_pos, int32_t last_pos,
                                int32_t base, int32_t n) {
  return visible_rows(chunk, first_pos, base, n).first >= n ||
         visible_rows(chunk, last_pos, base, n).end <= 0;
}

// use(base, n) for every tile of rows of [first, end) that are not all dead, in their order.
template <class Use>
static inline void for_tiles(const AttendChunk& chunk, int32_t first, int32_t end, Use use) {
  int32_t n = 0;
  for (int32_t base = first; base < end; base += n) {
    n = tile_rows(chunk, base, end);
    if (!all_dead(chunk, base, n)) use(base, n);
  }
}

}  // namespace kve::KVE_ISA
