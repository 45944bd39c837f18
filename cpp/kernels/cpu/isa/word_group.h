// A group of queries in int16 (word_tiles.h) against one tile of rows after the other, and the
// state of its softmax. Lanes are queries: there are no sums across lanes, and no tile is
// transposed.
//
// Weights are those of the codes of the values: 2^(score + log2 of the scale of the row's values),
// relative to the largest of the tile, in whole numbers. What the query sees decides about them and
// nothing else does.
#pragma once

#include "kernels/cpu/isa/word_tiles.h"
#if defined(KVE_BF16_TILES)
#include "simd/amx.h"
#endif

#if defined(KVE_WORD_TILES)

namespace kve::KVE_ISA {

// Numbers of a query, one to a lane, [n_vectors rounded up to groups].
struct QueryLanes {
  float* scale;   // of the codes of the query
  float* unit;    // as in AttendState
  float* weight;  // the sum of the weights
  // Where scores are limited: the rows it sees, its position, and its slope.
  SeenRows seen;
  float* position;
  float* slope;
};

// What a thread that calls attend_group() holds meanwhile.
#if defined(KVE_BF16_TILES)
using GroupUnit = TileUnit;
#else
struct GroupUnit {
  GroupUnit() {}
};
#endif

// All queries of a chunk; scores and weights are those of the group at hand.
struct GroupWork {
  QueryLanes lanes;
  int64_t key_words;
  int32_t* query_rows;  // [kLanes][key_words]
  int32_t* queries;     // [group][key_words][kWordLanes]
  float* scores;        // [kTile][kWordLanes]
  int32_t* weights;     // [kTile / 2][kWordLanes]: pairs of rows
  int64_t channels;     // of sums
  float* sums;          // [group][channels][kWordLanes]
  float* coded;         // the same of values in their basis
};
static inline GroupWork carve_group_work(Carver& carver, int key_dim, int value_dim) {
  constexpr int64_t kMost = (kMaxTileVectors + kWordLanes - 1) / kWordLanes * kWordLanes;
  GroupWork work = {};
  QueryLanes& lanes = work.lanes;
  float** const numbers[] = {&lanes.scale,     &lanes.unit,     &lanes.weight, &lanes.seen.first,
                             &lanes.seen.last, &lanes.position, &lanes.slope};
  for (float** number : numbers) *number = carver.take<float>(kMost);
  work.key_words = round_up(key_dim, 2 * kLanes) / 2;
  work.channels = round_up(value_dim, 2 * kLanes);
  work.query_rows = carver.take<int32_t>(kLanes * work.key_words);
  work.queries = carver.take<int32_t>(kMost * work.key_words);
  work.scores = carver.take<float>(kTile * kWordLanes);
  work.weights = carver.take<int32_t>(kTile / 2 * kWordLanes);
  work.sums = carver.take<float>(kMost * work.channels);
  work.coded = carver.take<float>(kMost * work.channels);
  return work;
}

// What is kept of the weights that a group gives a tile: pairs of bf16 numbers of two rows, times
// kKeptUnit; zero where rows are not computed. `top` is the logarithm of their unit.
constexpr float kKeptUnit = kBf16Tiles ? 1.0f : 1 << kWordWeightBits;
struct KeptTile {
  int32_t* weights;  // [kTile / 2][kWordLanes]
  float* top;        // [kWordLanes]
};

struct GroupTask {
  const AttendChunk& chunk;
  const GroupWork& work;
  const WordTile& tile;  // rows [base, base + n) of the cache
  int64_t n_vectors;
  int32_t base;
  int32_t n;
  int64_t value_width;
  float* sums;     // of work, which the tile's values are added to
  bool has_coded;  // whether there are any sums in a basis
  KeptTile* kept;  // or null
};

// Prepares all groups of a chunk, whose queries are in `state`; puts what came out there.
void start_groups(const AttendChunk& chunk, const AttendState& state, const GroupWork& work);
void finish_groups(const AttendState& state, const GroupWork& work);

// The group of queries from `lane` on against the tile. False where it sees nothing of it: nothing
// is kept then.
bool attend_group(const GroupTask& task, int64_t lane);

}  // namespace kve::KVE_ISA

#endif
