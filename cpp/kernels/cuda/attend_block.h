// What the threads of a block share in attention: its arguments, and the block's queries.
#pragma once

#include <algorithm>

#include "kernels/cuda/fragments.h"

namespace kve::cuda {

constexpr int kAttendWarps = 4;
constexpr int kAttendThreads = kAttendWarps * kWarpThreads;
constexpr int kTileRows = kPageTokens;
constexpr int kColumns = 8;  // of one product
// Queries' weights of a tile, halves from one column to the next: no two threads of half a warp
// then meet in a bank.
constexpr int kWeightStride = 80;
// Weights are 2^kLift times what they should be until they are divided by their sum, so that small
// ones stay normal binary16 numbers.
constexpr float kLift = 10;

struct AttendArgs {
  const float* q;
  int64_t q_stride;
  const HeadRows* heads;
  float* out;
  int64_t out_stride;
  float* log_sums;
  float* partials;  // [kv head][vector][part] of PartialSums and value_dim sums; null: one part
  int32_t n_queries;
  int32_t n_heads;
  int32_t group;  // query heads to a kv head
  int32_t key_dim;
  int32_t value_dim;
  // The most channels that rows of pages have.
  int32_t key_numbers;
  int32_t value_numbers;
  int32_t lifts;  // of a side of values: 0, 1, or 2 for several
  int32_t n_parts;
  int32_t part_tiles;
  int32_t window;
  float scale;  // with log2(e)
  float softcap;
  float inverse_softcap;
  const float* alibi;  // [n_heads], null: none
};

inline int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

inline AttendArgs args_of(const AttendParams& params, const ReadNeeds& needs, int64_t n_queries) {
  AttendArgs args{};
  args.n_queries = static_cast<int32_t>(n_queries);
  args.n_heads = params.n_heads;
  args.group = params.n_heads / params.n_kv_heads;
  args.key_dim = params.key_dim;
  args.value_dim = params.value_dim;
  args.key_numbers = std::max(params.key_dim, needs.key_numbers);
  args.value_numbers = std::max(params.value_dim, needs.value_numbers);
  args.lifts = needs.several_lifts ? 2 : 1;
  args.window = params.window;
  args.scale = params.scale * kLog2E;
  args.softcap = params.softcap * kLog2E;
  args.inverse_softcap = params.softcap > 0 ? params.scale / params.softcap : 0;
  return args;
}

// Maximum and sum, in base 2, of the weights of one vector in a part.
struct PartialSums {
  float most;
  float sum;
};

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int most_of(int a, int b) { return a > b ? a : b; }

constexpr int kTableCodes = 256;

// Memory shared by a block.
struct Shared {
  Words2* queries;       // [key_dim / 16][column blocks][32 threads]: fragments of B
  uint16_t* weights;     // [warps][columns][kWeightStride]
  float* sums;           // [columns][value_dim]
  PartialSums* partial;  // [warps][columns]
  uint16_t* key_tables;  // [kMostTiers][kTableCodes]
  uint16_t* value_tables;
  // Of a warp, where pages are in a basis (attend_queries.h).
  unsigned char* bases;
  float* lifted;  // [numbers of WarpState::out][32 threads], or null
};
struct SharedOffsets {
  size_t weights;
  size_t sums;
  size_t partial;
  size_t tables;
  size_t bases;
  size_t lifted;
  size_t end;
  size_t warp_bases;  // bytes of a warp
  size_t warp_lifted;
};
KVE_HD SharedOffsets shared_offsets(const AttendArgs& args, int columns, int out_numbers,
                                    bool in_basis) {
  SharedOffsets at{};
  at.weights = static_cast<size_t>(args.key_dim) * columns * 2;
  at.sums = at.weights + sizeof(uint16_t) * kAttendWarps * columns * kWeightStride;
  at.partial = at.sums + sizeof(float) * columns * args.value_dim;
  at.tables = at.partial + sizeof(PartialSums) * kAttendWarps * columns;
  at.bases = at.tables + 2 * kMostTiers * kTableCodes * sizeof(uint16_t);
  if (in_basis) {
    // Turned and projected queries, or sums of coefficients.
    const size_t queries = static_cast<size_t>(args.key_dim + args.key_numbers) * kWarpThreads;
    const size_t sums = sizeof(float) * columns * args.value_numbers;
    at.warp_bases = queries > sums ? queries : sums;
    if (args.lifts > 1) at.warp_lifted = sizeof(float) * kWarpThreads * out_numbers;
  }
  at.lifted = at.bases + kAttendWarps * at.warp_bases;
  at.end = at.lifted + kAttendWarps * at.warp_lifted;
  return at;
}
__device__ __forceinline__ Shared divide_shared(const AttendArgs& args, int columns,
                                                int out_numbers, bool in_basis,
                                                unsigned char* memory) {
  const SharedOffsets at = shared_offsets(args, columns, out_numbers, in_basis);
  auto* tables = reinterpret_cast<uint16_t*>(memory + at.tables);
  auto* lifted = reinterpret_cast<float*>(memory + at.lifted + warp_id() * at.warp_lifted);
  return {reinterpret_cast<Words2*>(memory),
          reinterpret_cast<uint16_t*>(memory + at.weights),
          reinterpret_cast<float*>(memory + at.sums),
          reinterpret_cast<PartialSums*>(memory + at.partial),
          tables,
          tables + kMostTiers * kTableCodes,
          memory + at.bases + warp_id() * at.warp_bases,
          at.warp_lifted > 0 ? lifted : nullptr};
}

__device__ __forceinline__ void fill_tables(const SideRows& side, uint16_t* tables) {
  for (int tier = 0; tier < side.n_tiers; ++tier) {
    const SideFormat& format = side.kinds[tier].format;
    if (!format.coded || !format.has_table) continue;
    for (int code = static_cast<int>(threadIdx.x); code < 1 << format.bits;
         code += kAttendThreads) {
      tables[tier * kTableCodes + code] =
          float_to_half(level(format.coding, format.bits, static_cast<unsigned>(code)));
    }
  }
}

// A vector is a query of one of the query heads that read the kv head.
__device__ __forceinline__ const float* query_of(const AttendArgs& args, int kv_head, int vector) {
  return args.q + vector / args.group * args.q_stride +
         int64_t{kv_head * args.group + vector % args.group} * args.key_dim;
}

// The block's queries as fragments; columns past the last vector are zeros.
template <int kBlocks>
__device__ __forceinline__ void fill_queries(const AttendArgs& args, int kv_head, int first_vector,
                                             Words2* queries) {
  const int count = args.key_dim / 16 * kBlocks * kWarpThreads;
  for (int n = static_cast<int>(threadIdx.x); n < count; n += kAttendThreads) {
    const int lane = n % kWarpThreads;
    const int block = n / kWarpThreads % kBlocks;
    const int channel = n / kWarpThreads / kBlocks * 16 + lane % 4 * 4;
    const int vector = first_vector + block * kColumns + lane / 4;
    if (vector >= args.n_queries * args.group) {
      queries[n] = {0, 0};
      continue;
    }
    const float* q = query_of(args, kv_head, vector) + channel;
    queries[n] = {pack_halves(q[0], q[2]), pack_halves(q[1], q[3])};
  }
}

}  // namespace kve::cuda
