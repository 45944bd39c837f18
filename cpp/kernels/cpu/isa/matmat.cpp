// Many inputs against quantized weights. The weights of a tile of rows are unpacked once into bytes
// in which one 32-bit lane holds 4 consecutive values of one row, so that a vector is as many rows;
// inputs are broadcast 4 values at a time. No horizontal sums, no shuffles in the inner loop.
#include <string.h>

#include "kernels/cpu/isa/isa.h"
#include "kernels/cpu/isa/unpack.h"

namespace kve::KVE_ISA {

constexpr int kTileRows = kMatVectors * kLanes;
constexpr int kChunk = 256;  // columns unpacked at a time
constexpr int kChunkGroups = kChunk / 32;

namespace {

// kMatTokens inputs, interleaved: the values at one place of all of them lie side by side.
struct Pack {
  int32_t* codes;    // [cols / 4][kMatTokens], 4 codes each
  float* scales;     // [cols / 32][kMatTokens]
  int32_t* start16;  // [cols / 16][kMatTokens]: what takes back kDotBias
  int32_t* start32;  // [cols / 32][kMatTokens]
  float* sums16;     // [cols / 16][kMatTokens]: scale times the sum of codes
  float* sums32;     // [cols / 32][kMatTokens]

  Pack(std::byte* data, int64_t cols) {
    Carver carver(data);
    codes = carver.take<int32_t>(cols / 4 * kMatTokens);
    scales = carver.take<float>(cols / 32 * kMatTokens);
    start16 = carver.take<int32_t>(cols / 16 * kMatTokens);
    start32 = carver.take<int32_t>(cols / 32 * kMatTokens);
    sums16 = carver.take<float>(cols / 16 * kMatTokens);
    sums32 = carver.take<float>(cols / 32 * kMatTokens);
    size = carver.size();
  }
  size_t size;
};

// A tile of unpacked weights.
struct Tile {
  int8_t* codes;  // [cols / 4][kTileRows][4]
  float* scales;  // [groups][kTileRows], a group being 16 or 32 values
  float* minima;  // the same
  int8_t* rows;   // [kTileRows][kChunk]: row by row, before transposing
  size_t size;

  Tile(std::byte* data, int64_t cols) {
    Carver carver(data);
    codes = carver.take<int8_t>(round_up(cols, 64) * kTileRows);
    scales = carver.take<float>(cols / 16 * kTileRows);
    minima = carver.take<float>(cols / 16 * kTileRows);
    rows = carver.take<int8_t>(kTileRows * kChunk);
    size = carver.size();
  }
};

}  // namespace

size_t pack_bytes(int64_t cols) { return Pack(nullptr, cols).size; }

// Group g of input p.
static inline void pack_group(const Pack& out, int p, int64_t g, const int8_t* codes, float scale) {
  int32_t* words = out.codes + 8 * g * kMatTokens + p;
#pragma GCC unroll 8
  for (int64_t i = 0; i < 8; ++i) memcpy(words + i * kMatTokens, codes + 4 * i, 4);
  int32_t total[2];
  code_sums(codes, total);
  out.scales[g * kMatTokens + p] = scale;
  for (int64_t half = 0; half < 2; ++half) {
    out.start16[(2 * g + half) * kMatTokens + p] = -kDotBias * total[half];
    out.sums16[(2 * g + half) * kMatTokens + p] = scale * static_cast<float>(total[half]);
  }
  out.start32[g * kMatTokens + p] = -kDotBias * (total[0] + total[1]);
  out.sums32[g * kMatTokens + p] = scale * static_cast<float>(total[0] + total[1]);
}

void pack(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, int planes,
          std::byte* dst) {
  constexpr int64_t kGroups = 8;  // quantized at a time
  const Pack out(dst, cols);
  int8_t codes[2][32 * kGroups];
  float scales[kGroups];
  for (int64_t first = 0; first < cols / 32; first += kGroups) {
    const int64_t n = least(cols / 32 - first, kGroups);
    for (int t = 0; t < kMatTokens / planes; ++t) {
      if (t < n_tokens) {
        quantize_values(x + t * stride + 32 * first, 32 * n, codes[0],
                        planes == 2 ? codes[1] : nullptr, scales);
      } else {
        memset(codes, 0, sizeof(codes));
        memset(scales, 0, sizeof(scales));
      }
      for (int64_t g = 0; g < n; ++g) {
        pack_group(out, t * planes, first + g, codes[0] + 32 * g, scales[g]);
        if (planes == 2) {
          pack_group(out, t * planes + 1, first + g, codes[1] + 32 * g, scales[g] / 254.0f);
        }
      }
    }
  }
}

size_t matmat_scratch(int64_t cols) { return Tile(nullptr, cols).size; }

// Up to kChunkGroups groups of row r of the tile; no groups at all give zeros.
static void place_groups(const Tile& tile, int r, int64_t first_group, int64_t n_groups,
                         CodeGroup* groups, bool halves) {
  for (int64_t g = 0; g < n_groups; ++g) {
    dot_bytes(groups[g].codes);
    memcpy(tile.rows + r * kChunk + 32 * g, groups[g].codes, 32);
    const int64_t place = first_group + g;
    if (halves) {
      for (int64_t half = 0; half < 2; ++half) {
        tile.scales[(2 * place + half) * kTileRows + r] = groups[g].scale[half];
        tile.minima[(2 * place + half) * kTileRows + r] = groups[g].min[half];
      }
    } else {
      tile.scales[place * kTileRows + r] = groups[g].scale[0];
      tile.minima[place * kTileRows + r] = groups[g].min[0];
    }
  }
}

// tile.rows [kTileRows][4 * n_words bytes] to tile.codes from word `first_word` on.
static void interleave(const Tile& tile, int64_t first_word, int64_t n_words) {
  for (int v = 0; v < kMatVectors; ++v) {
    for (int64_t w = 0; w < n_words; w += kLanes) {
      F32 block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const int8_t* from = tile.rows + (v * kLanes + i) * kChunk + 4 * w;
        block[i] = load(reinterpret_cast<const float*>(from));
      }
      transpose(block);
      int8_t* to = tile.codes + ((first_word + w) * kTileRows + v * kLanes) * 4;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        store(reinterpret_cast<float*>(to + i * kTileRows * 4), block[i]);
      }
    }
  }
}

static void unpack_tile(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows, bool halves,
                        const Tile& tile) {
  const int64_t n_groups = chunk.cols / 32;
  for (int64_t g = 0; g < n_groups; g += kChunkGroups) {
    const int64_t n = least(n_groups - g, kChunkGroups);
    for (int r = 0; r < kTileRows; ++r) {
      CodeGroup groups[kChunkGroups];
      if (r < n_rows) {
        const size_t row = static_cast<size_t>(first_row + r);
        unpack(*chunk.format, chunk.weight + row * chunk.row_bytes, g, n, groups);
      } else {
        memset(groups, 0, sizeof(groups));
      }
      place_groups(tile, r, g, n, groups, halves);
    }
    interleave(tile, g * 8, n * 8);
  }
}

// sums[t][row] of one tile and one pack. kParts: scales per 32 values. Not inlined: see gemm.cpp.
template <int kParts, bool kMin>
__attribute__((noinline)) static void multiply(const Tile& tile, const Pack& x, int64_t cols,
                                               float* sums) {
  F32 total[kMatVectors][kMatTokens];
#pragma GCC unroll 2
  for (int v = 0; v < kMatVectors; ++v) {
#pragma GCC unroll 8
    for (int t = 0; t < kMatTokens; ++t) total[v][t] = zero();
  }
  const int8_t* w = tile.codes;
  const int32_t* codes = x.codes;
  const int32_t* start = kParts == 2 ? x.start16 : x.start32;
  const float* input_sums = kParts == 2 ? x.sums16 : x.sums32;
  for (int64_t g = 0; g < cols / 32 * kParts; ++g) {
    I32 dot[kMatVectors][kMatTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kMatTokens; ++t) {
      const I32 s = set_i32(start[g * kMatTokens + t]);
#pragma GCC unroll 2
      for (int v = 0; v < kMatVectors; ++v) dot[v][t] = s;
    }
#pragma GCC unroll 1
    for (int word = 0; word < 8 / kParts; ++word) {
      I32 rows[kMatVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kMatVectors; ++v) rows[v] = load_i32(w + v * kLanes * 4);
      w += kTileRows * 4;
#pragma GCC unroll 8
      for (int t = 0; t < kMatTokens; ++t) {
        const I32 value = set_i32(codes[t]);
#pragma GCC unroll 2
        for (int v = 0; v < kMatVectors; ++v) dot[v][t] = dot4(dot[v][t], rows[v], value);
      }
      codes += kMatTokens;
    }
    const float* input_scales = x.scales + g / kParts * kMatTokens;
#pragma GCC unroll 2
    for (int v = 0; v < kMatVectors; ++v) {
      const F32 scale = load(tile.scales + g * kTileRows + v * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kMatTokens; ++t) {
        total[v][t] = fma(to_f32(dot[v][t]) * scale, set(input_scales[t]), total[v][t]);
      }
      if (kMin) {
        const F32 min = load(tile.minima + g * kTileRows + v * kLanes);
#pragma GCC unroll 8
        for (int t = 0; t < kMatTokens; ++t) {
          total[v][t] = fma(min, set(input_sums[g * kMatTokens + t]), total[v][t]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kMatTokens; ++t) {
#pragma GCC unroll 2
    for (int v = 0; v < kMatVectors; ++v) store(sums + t * kTileRows + v * kLanes, total[v][t]);
  }
}

static void write_out(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                      int64_t first_token, int planes, const float* sums) {
  const int64_t n_tokens = least(chunk.n_tokens - first_token, kMatTokens / planes);
  for (int64_t t = 0; t < n_tokens; ++t) {
    const float* from = sums + t * planes * kTileRows;
    float* y = chunk.y + (first_token + t) * chunk.y_stride + first_row;
    for (int64_t r = 0; r < n_rows; r += kLanes) {
      const int64_t n = least(n_rows - r, kLanes);
      F32 total = load(from + r);
      if (planes == 2) total = total + load(from + kTileRows + r);
      if (chunk.bias != nullptr) total = total + load_n(chunk.bias + first_row + r, n);
      store_n(y + r, total, n);
    }
  }
}

template <int kParts, bool kMin>
static void multiply_tile(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                          const QuantizedInput& packs, const Tile& tile) {
  unpack_tile(chunk, first_row, n_rows, kParts == 2, tile);
  const int64_t step = kMatTokens / packs.planes;
  const size_t bytes = pack_bytes(chunk.cols);
  alignas(64) float sums[kMatTokens * kTileRows];
  for (int64_t t = 0; t < chunk.n_tokens; t += step) {
    const std::byte* data = packs.data + static_cast<size_t>(t / step) * bytes;
    multiply<kParts, kMin>(tile, Pack(const_cast<std::byte*>(data), chunk.cols), chunk.cols, sums);
    write_out(chunk, first_row, n_rows, t, packs.planes, sums);
  }
}

void matmat(const MatmulChunk& chunk, const QuantizedInput& packs) {
  const Tile tile(chunk.scratch, chunk.cols);
  const bool one = one_scale(chunk.format->type);
  const int64_t end = chunk.first_row + chunk.n_rows;
  for (int64_t r = chunk.first_row; r < end; r += kTileRows) {
    const int64_t n = least(end - r, kTileRows);
    if (chunk.format->has_min) {
      if (one) {
        multiply_tile<1, true>(chunk, r, n, packs, tile);
      } else {
        multiply_tile<2, true>(chunk, r, n, packs, tile);
      }
    } else if (one) {
      multiply_tile<1, false>(chunk, r, n, packs, tile);
    } else {
      multiply_tile<2, false>(chunk, r, n, packs, tile);
    }
  }
}

}  // namespace kve::KVE_ISA
