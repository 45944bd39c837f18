// A slice of weights unpacked for matmat: kSliceRows rows as bytes, 4 consecutive values of one row
// to a 32-bit lane, with one f32 scale and minimum per group.
#pragma once

#include <string.h>

#include "kernels/cpu/isa/interleaved.h"
#include "kernels/cpu/isa/pack.h"
#include "kernels/cpu/isa/unpack.h"

namespace kve::KVE_ISA {

constexpr int kSliceRows = kMatVectors * kLanes;
constexpr int kUnpackCols = 256;  // columns unpacked at a time from the file's layout
constexpr int kUnpackGroups = kUnpackCols / 32;

namespace {

struct Slice {
  int8_t* codes;           // [cols / 4][kSliceRows][4], as `dot_bytes` writes them
  float* scales;           // [groups][kSliceRows], a group being 16 or 32 values
  float* minima;           // the same
  float* offsets;          // the same, for sums that begin with kFloatStart (matmat.cpp)
  int8_t* rows;            // [kSliceRows][kUnpackCols]: row by row, before transposing
  int32_t* minimum_words;  // [group_pairs][kSliceRows]: minima of two groups of 32 (pack.h)
  float* minimum_units;    // [kSliceRows]
  size_t size;

  Slice(std::byte* data, int64_t cols) {
    Carver carver(data);
    codes = carver.take<int8_t>(round_up(cols, 64) * kSliceRows);
    scales = carver.take<float>(cols / 16 * kSliceRows);
    minima = carver.take<float>(cols / 16 * kSliceRows);
    offsets = carver.take<float>(cols / 16 * kSliceRows);
    rows = carver.take<int8_t>(kSliceRows * kUnpackCols);
    minimum_words = carver.take<int32_t>(kWordMinima ? group_pairs(cols) * kSliceRows : 0);
    minimum_units = carver.take<float>(kWordMinima ? kSliceRows : 0);
    size = carver.size();
  }
};

}  // namespace

// Up to kUnpackGroups groups of row r of the slice; no groups at all give zeros.
static void place_groups(const Slice& slice, int r, int64_t first_group, int64_t n_groups,
                         CodeGroup* groups, bool halves) {
  for (int64_t g = 0; g < n_groups; ++g) {
    dot_bytes(groups[g].codes);
    memcpy(slice.rows + r * kUnpackCols + 32 * g, groups[g].codes, 32);
    const int64_t place = first_group + g;
    if (halves) {
      for (int64_t half = 0; half < 2; ++half) {
        slice.scales[(2 * place + half) * kSliceRows + r] = groups[g].scale[half];
        slice.minima[(2 * place + half) * kSliceRows + r] = groups[g].min[half];
      }
    } else {
      slice.scales[place * kSliceRows + r] = groups[g].scale[0];
      slice.minima[place * kSliceRows + r] = groups[g].min[0];
    }
  }
}

// slice.rows [kSliceRows][4 * n_words bytes] to slice.codes from word `first_word` on.
static void transpose_rows(const Slice& slice, int64_t first_word, int64_t n_words) {
  for (int v = 0; v < kMatVectors; ++v) {
    for (int64_t w = 0; w < n_words; w += kLanes) {
      F32 block[kLanes];
      KVE_UNROLL(16)
      for (int i = 0; i < kLanes; ++i) {
        const int8_t* from = slice.rows + (v * kLanes + i) * kUnpackCols + 4 * w;
        block[i] = load(reinterpret_cast<const float*>(from));
      }
      transpose(block);
      int8_t* to = slice.codes + ((first_word + w) * kSliceRows + v * kLanes) * 4;
      KVE_UNROLL(16)
      for (int i = 0; i < kLanes; ++i) {
        store(reinterpret_cast<float*>(to + i * kSliceRows * 4), block[i]);
      }
    }
  }
}

// Rows of a chunk's weights, kSliceRows at the most, and their groups of columns; the first group
// is a multiple of kUnpackGroups, which becomes group 0 of the slice.
struct SliceOf {
  int64_t first_row;
  int64_t n_rows;
  int64_t first_group;
  int64_t n_groups;
};

// From the file's layout, for any type.
static void unpack_slice(const MatmulChunk& chunk, const SliceOf& part, bool halves,
                         const Slice& slice) {
  for (int64_t g = 0; g < part.n_groups; g += kUnpackGroups) {
    const int64_t n = least(part.n_groups - g, kUnpackGroups);
    for (int r = 0; r < kSliceRows; ++r) {
      CodeGroup groups[kUnpackGroups];
      if (r < part.n_rows) {
        const size_t row = static_cast<size_t>(part.first_row + r);
        unpack(*chunk.format, chunk.weight + row * chunk.row_bytes, part.first_group + g, n,
               groups);
      } else {
        memset(groups, 0, sizeof(groups));
      }
      place_groups(slice, r, g, n, groups, halves);
    }
    transpose_rows(slice, g * 8, n * 8);
  }
}

// Groups from `first_group` on of vector v of the slice, from vector `from` of a block.
template <class Type>
static void unpack_block_vector(const BlockView& block, int from, int64_t first_group,
                                int64_t n_groups, int v, const Slice& slice) {
  using Codes = typename Type::Codes;
  using Scales = typename Type::Scales;
  const I32 shift =
      set_bytes(static_cast<int8_t>(Codes::kSmall ? (kDotBias - Codes::kZero) & 255 : 0));
  const std::byte* step = block.codes;
  for (int64_t first = 0; first < n_groups; first += Codes::kGroups) {
    KVE_UNROLL(8)
    for (int g = 0; g < Codes::kGroups; ++g) {
      const int64_t group = first + g;
      const int64_t place = first_group + group;
      int8_t* codes = slice.codes + (8 * place * kSliceRows + v * kLanes) * 4;
      KVE_UNROLL(8)
      for (int j = 0; j < 8; ++j) {
        store_i32(codes + j * kSliceRows * 4, add_bytes(Codes::word(step, from, g, j), shift));
      }
      KVE_UNROLL(2)
      for (int part = 0; part < Scales::kParts; ++part) {
        float* scales = slice.scales + (place * Scales::kParts + part) * kSliceRows + v * kLanes;
        store(scales, Scales::scale(block, group * Scales::kParts + part, from));
      }
      if constexpr (Scales::kMin) {
        store(slice.minima + place * kSliceRows + v * kLanes, Scales::minimum(block, group, from));
      }
    }
    step += Codes::kLines * kLineBytes;
  }
}

// From interleaved tiles. Rows past the last tile get scales of zero, so that they count nothing.
template <class Type>
static void unpack_tiles(const MatmulChunk& chunk, const SliceOf& part, const Slice& slice) {
  static_assert(kUnpackGroups == kBlockGroups);
  const int64_t end = round_up(part.first_row + part.n_rows, kTileRows);
  for (int v = 0; v < kMatVectors; ++v) {
    const int64_t row = part.first_row + v * kLanes;
    if (row < end) {
      std::byte* data = const_cast<std::byte*>(chunk.tiles) +
                        row / kTileRows * tile_bytes<Type>(chunk.cols) +
                        part.first_group / kBlockGroups * block_bytes<Type>(kBlockGroups);
      const int from = static_cast<int>(row % kTileRows / kLanes);
      for (int64_t g = 0; g < part.n_groups; g += kBlockGroups) {
        const int64_t n = least(part.n_groups - g, kBlockGroups);
        const BlockView block = view_block<Type>(data, n);
        unpack_block_vector<Type>(block, from, g, n, v, slice);
        data += block_bytes<Type>(n);
      }
      continue;
    }
    for (int64_t g = 0; g < part.n_groups * Type::Scales::kParts; ++g) {
      store(slice.scales + g * kSliceRows + v * kLanes, zero());
      store(slice.minima + g * kSliceRows + v * kLanes, zero());
    }
  }
}

// From either layout.
static inline void unpack_part(const MatmulChunk& chunk, const SliceOf& part, const Slice& slice) {
  if (chunk.tiles == nullptr) {
    unpack_slice(chunk, part, !one_scale(chunk.format->type), slice);
    return;
  }
  with_interleaved(chunk.format->type,
                   [&](auto kind) { unpack_tiles<decltype(kind)>(chunk, part, slice); });
}

// See sums_of().
static inline bool has_offsets(WeightType type) {
  return type != WeightType::mxfp4 && type != WeightType::q8_k;
}

}  // namespace kve::KVE_ISA
