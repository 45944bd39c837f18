// Keys in a basis (kernels/basis_view.h), in attention: queries are turned back to the anchor of a
// page and projected, by products of the tensor cores that read the lift as it lies in memory,
// whose cache it stays in. A warp does that for itself.
//
// The order of what a product sums over, and of its columns, is free, so that a thread takes four
// numbers of the lift in one load, and gets the coefficients that it needs as fragments of queries.
#pragma once

#include "kernels/cuda/attend_tile.h"

namespace kve::cuda {

// Four numbers of row `row` of the lift from column `column` on, which may be past the end of a
// row, as pairs of binary16: 0, 1 and 2, 3. Rows of int8 are without their factor.
__device__ __forceinline__ Words2 read_lift(const SideBasis& basis, int row, int column) {
  if (column >= basis.block_width) return {0, 0};
  const int64_t at = int64_t{row} * basis.block_width + column;
  if (basis.lift8 == nullptr) return load_words2(basis.lift + at);
  // Code + 128 becomes 1024 + code + 128.
  const uint32_t codes = load_word(basis.lift8 + at) ^ 0x80808080u;
  constexpr uint32_t kZero = 0x64806480u;  // twice 1024 + 128
  return {sub_halves(pick_bytes(codes, kMagicHalves, 0x5150), kZero),
          sub_halves(pick_bytes(codes, kMagicHalves, 0x5352), kZero)};
}

struct Quad {
  float value[4];
};
__device__ __forceinline__ Quad load_quad(const float* from) {
  const Words4 words = load_words4(from);
  return {{float_from_bits(words.x), float_from_bits(words.y), float_from_bits(words.z),
           float_from_bits(words.w)}};
}

// Values [d, d + 4) of a query, turned back by the angles of an anchor and multiplied by the
// factors of the lift's rows.
__device__ __forceinline__ Quad turn_query(const SideBasis& basis, const float* query,
                                           const float* angles, int d) {
  Quad out = load_quad(query + d);
  const int n = basis.n_pairs;
  if (angles != nullptr && d < 2 * n) {
    if (basis.interleaved) {
      KVE_UNROLL
      for (int p = 0; p < 4; p += 2) {
        const float cosine = angles[(d + p) / 2];
        const float sine = angles[n + (d + p) / 2];
        const float x = out.value[p];
        const float y = out.value[p + 1];
        out.value[p] = x * cosine + y * sine;
        out.value[p + 1] = y * cosine - x * sine;
      }
    } else {
      const bool first = d < n;
      const Quad other = load_quad(query + (first ? d + n : d - n));
      const Quad cosine = load_quad(angles + (first ? d : d - n));
      const Quad sine = load_quad(angles + (first ? d + n : d));
      KVE_UNROLL
      for (int p = 0; p < 4; ++p) {
        const float across = other.value[p] * sine.value[p];
        out.value[p] = out.value[p] * cosine.value[p] + (first ? across : -across);
      }
    }
  }
  if (basis.lift8 != nullptr) {
    const Quad scale = load_quad(basis.lift8_scale + d % basis.block);
    KVE_UNROLL
    for (int p = 0; p < 4; ++p) out.value[p] *= scale.value[p] * basis.query_factor;
  }
  return out;
}

// Two sets of eight vectors that are projected together, each for a page: those of a block of
// columns; null: none.
struct ProjectedSet {
  int first_vector;
  const float* angles;
};

// Where a warp keeps its sets: turned [dim / 16][32] Words4, then projected [coefficients / 16],
// sets and threads as in Shared::queries.
struct ProjectionPlace {
  unsigned char* turned;
  Words2* projected;
  int set_stride;   // from one set to the other
  int step_stride;  // from 16 coefficients to the next
};
__device__ __forceinline__ ProjectionPlace projection_place(const AttendArgs& args, int blocks,
                                                            int n_coefficients,
                                                            unsigned char* memory) {
  auto* projected =
      reinterpret_cast<Words2*>(memory + static_cast<int64_t>(args.key_dim) * kWarpThreads);
  // Of two blocks of columns a set is a block; else it is a page.
  if (blocks == 2) return {memory, projected, kWarpThreads, 2 * kWarpThreads};
  return {memory, projected, n_coefficients / 16 * kWarpThreads, kWarpThreads};
}

__device__ __forceinline__ void turn_queries(const AttendArgs& args, const SideBasis& basis,
                                             int kv_head, const ProjectedSet (&sets)[2],
                                             unsigned char* to) {
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  for (int j = 0; j < args.key_dim / 16; ++j) {
    Quad turned[2] = {};
    KVE_UNROLL
    for (int s = 0; s < 2; ++s) {
      const int vector = sets[s].first_vector + g;
      if (sets[s].first_vector < 0 || vector >= args.n_queries * args.group) continue;
      turned[s] =
          turn_query(basis, query_of(args, kv_head, vector), sets[s].angles, 16 * j + 4 * i);
    }
    const auto pair = [&](int s, int p) {
      return pack_halves(turned[s].value[p], turned[s].value[p + 1]);
    };
    store_words4(to + (j * kWarpThreads + lane_id()) * sizeof(Words4),
                 {pair(0, 0), pair(1, 0), pair(0, 2), pair(1, 2)});
  }
}

// Coefficients of the sets as fragments of queries. Each thread reads what it wrote itself.
__device__ __forceinline__ void project_queries(const AttendArgs& args, const SideBasis& basis,
                                                int kv_head, const ProjectedSet (&sets)[2],
                                                const ProjectionPlace& place) {
  turn_queries(args, basis, kv_head, sets, place.turned);
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  const int steps = basis.block / 16;
  // Products of which column n is coefficient n % 2 * 16 + n / 2 * 4 + t.
  const int own_column = g % 2 * 16 + g / 2 * 4;
  for (int b = 0; b < args.key_dim / basis.block; ++b) {
    for (int first = 0; first < basis.block_width; first += 32) {
      float sums[4][4] = {};
      for (int j = 0; j < steps; ++j) {
        Words2 rows[4];
        KVE_UNROLL
        for (int n = 0; n < 4; ++n) {
          rows[n] = read_lift(basis, 16 * j + 4 * i + n, first + own_column);
        }
        const Words4 a = load_words4(place.turned +
                                     ((b * steps + j) * kWarpThreads + lane_id()) * sizeof(Words4));
        const uint32_t words[4] = {a.x, a.y, a.z, a.w};
        mma_f16(sums[0], words, low_pair(rows[0].x, rows[1].x), low_pair(rows[2].x, rows[3].x));
        mma_f16(sums[1], words, high_pair(rows[0].x, rows[1].x), high_pair(rows[2].x, rows[3].x));
        mma_f16(sums[2], words, low_pair(rows[0].y, rows[1].y), low_pair(rows[2].y, rows[3].y));
        mma_f16(sums[3], words, high_pair(rows[0].y, rows[1].y), high_pair(rows[2].y, rows[3].y));
      }
      if (basis.lift8 != nullptr) {
        KVE_UNROLL
        for (int t = 0; t < 4; ++t) {
          KVE_UNROLL
          for (int n = 0; n < 4; ++n) sums[t][n] *= 1.0f / 128;
        }
      }
      Words2* to =
          place.projected + (b * basis.block_width + first) / 16 * place.step_stride + lane_id();
      KVE_UNROLL
      for (int n = 0; n < 4; ++n) {
        if (n % 2 == 1 && first + 16 >= basis.block_width) continue;
        to[n % 2 * place.step_stride + n / 2 * place.set_stride] = {
            pack_halves(sums[0][n], sums[2][n]), pack_halves(sums[1][n], sums[3][n])};
      }
    }
  }
}

// What a warp has projected: for a tile and, where its vectors are one block of columns, for
// another.
struct Projected {
  const PageKind* kind = nullptr;
  int tile = -1;
  int next = -1;
};

// The queries for the keys of `tile`, which are in a basis: as Shared::queries. `next`: the warp's
// next tile, if its keys are in pages, else -1.
template <int kBlocks>
__device__ __forceinline__ const Words2* queries_for(const AttendArgs& args, const SideRows& side,
                                                     int first_page, int kv_head, int first_vector,
                                                     int tile, int next, unsigned char* memory,
                                                     Projected* done) {
  const PagePlace& page = side.pages[tile - first_page];
  const PageKind* kind = side.kinds + page.kind;
  const SideBasis& basis = kind->basis;
  const ProjectionPlace place = projection_place(args, kBlocks, side.n_channels, memory);
  const bool fixed = basis.angles == nullptr;
  if (done->kind == kind) {
    if (fixed || done->tile == tile) return place.projected;
    if (done->next == tile) return place.projected + place.set_stride;
  }
  const auto angles_of = [&](const PagePlace& of) {
    return fixed ? nullptr : basis.angles + int64_t{of.anchor} * 2 * basis.n_pairs;
  };
  ProjectedSet sets[2] = {{first_vector, angles_of(page)}, {-1, nullptr}};
  *done = {kind, tile, -1};
  if (kBlocks == 2) {
    sets[1] = {first_vector + kColumns, sets[0].angles};
  } else if (!fixed && next >= 0 && side.pages[next - first_page].kind == page.kind) {
    sets[1] = {first_vector, angles_of(side.pages[next - first_page])};
    done->next = next;
  }
  project_queries(args, basis, kv_head, sets, place);
  return place.projected;
}
}  // namespace kve::cuda
