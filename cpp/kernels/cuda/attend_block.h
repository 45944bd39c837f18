// What the threads of a block share in attention: its arguments, and the block's queries.
#pragma once

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
  int32_t n_parts;
  int32_t part_tiles;
  int32_t window;
  float scale;  // with log2(e)
  float softcap;
  float inverse_softcap;
};

// Maximum and sum, in base 2, of the weights of one vector in a part.
struct PartialSums {
  float most;
  float sum;
};

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int most_of(int a, int b) { return a > b ? a : b; }

// Memory shared by a block.
struct Shared {
  Words2* queries;       // [key_dim / 16][column blocks][32 threads]: fragments of B
  uint16_t* weights;     // [warps][columns][kWeightStride]
  float* sums;           // [columns][value_dim]
  PartialSums* partial;  // [warps][columns]
  uint16_t* key_table;   // [256]
  uint16_t* value_table;
};
struct SharedOffsets {
  size_t weights;
  size_t sums;
  size_t partial;
  size_t tables;
  size_t end;
};
KVE_HD SharedOffsets shared_offsets(const AttendArgs& args, int columns) {
  SharedOffsets at{};
  at.weights = static_cast<size_t>(args.key_dim) * columns * 2;
  at.sums = at.weights + sizeof(uint16_t) * kAttendWarps * columns * kWeightStride;
  at.partial = at.sums + sizeof(float) * columns * args.value_dim;
  at.tables = at.partial + sizeof(PartialSums) * kAttendWarps * columns;
  at.end = at.tables + 2 * 256 * sizeof(uint16_t);
  return at;
}
__device__ __forceinline__ Shared divide_shared(const AttendArgs& args, int columns,
                                                unsigned char* memory) {
  const SharedOffsets at = shared_offsets(args, columns);
  auto* tables = reinterpret_cast<uint16_t*>(memory + at.tables);
  return {reinterpret_cast<Words2*>(memory),
          reinterpret_cast<uint16_t*>(memory + at.weights),
          reinterpret_cast<float*>(memory + at.sums),
          reinterpret_cast<PartialSums*>(memory + at.partial),
          tables,
          tables + 256};
}

__device__ __forceinline__ void fill_table(const SideFormat& format, uint16_t* table) {
  if (!format.coded || !format.has_table) return;
  for (int code = static_cast<int>(threadIdx.x); code < 1 << format.bits; code += kAttendThreads) {
    table[code] = float_to_half(level(format.coding, format.bits, static_cast<unsigned>(code)));
  }
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
    const float* q = args.q + vector / args.group * args.q_stride +
                     int64_t{kv_head * args.group + vector % args.group} * args.key_dim + channel;
    queries[n] = {pack_halves(q[0], q[2]), pack_halves(q[1], q[3])};
  }
}

}  // namespace kve::cuda
