// The table of functions that each instruction set provides (cpu/isa/). Plain structs and pointers
// only: these sources are compiled with flags the rest of the program must not see, so nothing they
// instantiate may be shared with it.
//
// Functions work on one chunk and one thread; cpu_backend.cpp splits the work. Nothing here checks,
// throws or allocates: scratch is given, 64-byte aligned.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "formats/cache_codecs.h"
#include "formats/weight_formats.h"
#include "kernels/basis_view.h"
#include "kernels/cpu/matmul_args.h"
#include "kernels/cpu/strip_args.h"
#include "kernels/half_dots.h"
#include "kernels/page_view.h"

namespace kve {

// One side of one kv head's cache, as SideView.
struct SideArgs {
  PageFormat format;
  const PageFormat* older = nullptr;         // [n_tiers - 1]
  const PageFormat* coefficients = nullptr;  // as in SideView
  int32_t n_tiers = 1;
  int32_t width;
  int32_t first_channel;
  int32_t n_channels;
  const PageView* pages;
  int32_t n_pages;
  const BasisView* bases;  // or null
  const uint16_t* sinks;   // f16
  int32_t sink_rows;
  const uint16_t* tail;  // f16
  int32_t row_stride;
  // Cosines, then sines, of the angles of all pairs at the positions that exceed angle_offset by
  // multiples of angle_step; null where rows are not anchored.
  const float* angles;
  int32_t angle_step;
  int32_t angle_offset;
  const int32_t* positions;  // of all rows, where they are not consecutive; or null
  // How pages are read code by code, by basis; null: their rows are rebuilt.
  const StripSide* strips;
};

// How a chunk of queries meets the rows of the cache.
enum class AttendMethod : uint8_t {
  rows,           // few queries: row by row as they lie in memory, which is read once
  strips,         // the same for coded pages, whose codes are multiplied as they lie in memory
  tiles,          // many queries: tiles of rows are decoded to f32 for matrix products
  rounded_tiles,  // the same, but queries, rows and weights are rounded: to bf16, or to int16
  weighed_tiles,  // the same in int16, of tiles prepared before; also gives the weights of rows
};

// Queries of one attend task that share a kv head: n_tokens x n_group vectors, against the cache
// rows [first_row, end_row).
struct AttendChunk {
  AttendMethod method;
  SideArgs k;
  SideArgs v;
  int32_t first_row;
  int32_t end_row;
  // Where rows are not at consecutive positions, all "positions" but those of SideArgs are rows.
  int32_t first_pos;     // position of cache row 0
  int32_t page_offset;   // pages begin where positions exceed a multiple of kPageTokens by this
  const uint64_t* dead;  // bit r: nobody sees row r; or null
  const float* q;        // [n_tokens] rows of n_group * key_dim values
  int64_t q_stride;
  int32_t n_tokens;
  int32_t n_group;
  int32_t query_pos;  // of the first token
  int32_t dropped;    // what the true positions of the queries exceed query_pos by
  float scale;
  float softcap;
  int32_t window;
  const float* alibi;  // [n_group] or null
  // Either out (normalised, [n_tokens] rows of n_group * value_dim values) or, when it is null,
  // `partial`: per vector value_stride sums and kept_floats sums in the basis of the values' pages,
  // then for all vectors the base 2 logarithm of the unit of their weights, then their sum of
  // weights.
  float* out;
  int64_t out_stride;
  float* log_sums;  // with out: [n_tokens] rows of n_group, log_sum_stride apart; or null
  int64_t log_sum_stride;
  float* partial;
  int32_t kept_floats;  // multiple of kLanes, for a side of one basis; 0: such sums are lifted
  // Of weighed_tiles, which writes to `out`: the head's rows, what stage_tiles() made of them all,
  // and the sums of the weights that the chunk's queries give each, which are written.
  int32_t n_rows;
  std::byte* tiles;
  float* mass;
  // Of rows and strips: receives the scores of the chunk's rows, minus infinity where a vector does
  // not see one, [n_tokens * n_group] rows score_stride apart, from row 0 of the cache on; or null.
  float* scores;
  int64_t score_stride;
  // The latest chunk that used this scratch differs in its rows and its output only: what it left
  // there need not be prepared again.
  bool prepared;
  std::byte* scratch;
};

// Partial results of the same vectors over several ranges of rows, part_stride floats apart, added
// up in order.
struct AttendMerge {
  const float* partial;
  int64_t part_stride;
  int32_t n_parts;
  int32_t n_tokens;
  int32_t n_group;
  int32_t value_dim;
  int32_t kept_floats;     // as in AttendChunk, as is `out`
  const BasisView* basis;  // of what was kept
  float* out;
  int64_t out_stride;
  float* log_sums;
  int64_t log_sum_stride;
};

// The weights that the queries of a chunk, whose sums are known, give its rows: added to `mass`, or
// the larger of both. Of the chunk, `v`, the output and `partial` are not used.
struct MassChunk {
  AttendChunk chunk;
  const float* log_sums;  // [n_tokens] rows of n_group, as attend() gave them
  int64_t log_sum_stride;
  bool most;
  float* mass;  // [end_row]: of all rows from row 0 on
};

// Adds the weights 2^(score - log_sum) of a few vectors to the mass of n rows.
struct ScoreWeights {
  const float* scores;  // [n_vectors][n], stride apart
  int64_t stride;
  int32_t n_vectors;
  const float* log_sums;  // [n_vectors]
  int64_t n;
  float* mass;  // [n]
};

// Bounds of the functions below.
inline constexpr int kMaxVectorInputs = 7;     // matvec: inputs of one call, planes included
inline constexpr int kMaxTileInputs = 16;      // matvec_tiles: inputs of one call
inline constexpr int kInterleavedRows = 16;    // rows of a tile
inline constexpr int kMaxAttendVectors = 384;  // attend: n_tokens * n_group of one call
inline constexpr int kMaxStripVectors = 48;    // the same where pages are read code by code
inline constexpr int kMaxKeptFloats = 512;     // AttendChunk::kept_floats
inline constexpr int kAttendTile = 64;         // attend: cache rows decoded at a time
inline constexpr int kPeakValues = 512;        // peak_int8, peak_f32: operands
inline constexpr int kPeakSums = 16 * 16;      // peak_*: results

// Many inputs, packed in groups of `tokens`, against quantized weights of either layout.
struct PackedProducts {
  int tokens;                          // inputs of a pack
  size_t (*pack_bytes)(int64_t cols);  // of one pack
  void (*pack)(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, float least_error,
               std::byte* dst);
  int rows;             // chunks start at multiples of this
  int most_rows;        // of a chunk whose inputs are more than the second cache holds
  int64_t most_inputs;  // of a chunk
  size_t (*scratch)(int64_t cols, int64_t n_inputs);
  void (*multiply)(const MatmulChunk& chunk, const std::byte* packs);
  // Packs that are made some groups at a time, by gated_group(), and ended one by one, unless
  // end_pack is null.
  size_t (*gated_scratch)(int64_t cols, int64_t n_rows, int64_t n_tokens);
  void (*gated_group)(const GatedChunk& chunk, const std::byte* packs);
  void (*end_pack)(int64_t cols, float least_error, std::byte* pack);
};

struct Kernels {
  const char* name;

  // out = x / sqrt(mean(x^2) + eps) * weight, n values.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // Rotates the first 2 * half values of each of n_heads vectors in place; cos, sin [half].
  void (*rope)(float* x, int64_t n_heads, int64_t head_dim, int64_t half, bool interleaved,
               const float* cos, const float* sin);
  // gate = activation(gate) * up; the number is that of enum Activation.
  void (*gated)(int activation, float* gate, const float* up, int64_t n);
  void (*add)(float* x, const float* y, int64_t n);
  void (*scale)(float* x, float factor, int64_t n);
  void (*softcap)(float cap, float* x, int64_t n);
  void (*half_to_f32)(const uint16_t* src, float* dst, int64_t n);

  // Few inputs (n_tokens * planes <= kMaxVectorInputs) against quantized weights.
  size_t (*vector_bytes)(int64_t cols);  // of one quantized input
  void (*quantize_rows)(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, int planes,
                        std::byte* dst);
  size_t (*matvec_scratch)(int64_t cols);
  void (*matvec)(const MatmulChunk& chunk, const QuantizedInput& x);

  // A few inputs against interleaved weights, or many, packed, against either kind: int8 with a
  // scale per 32 columns. A group of 32 has a second plane, its int8 remainder, where the mean
  // square of its rounding errors exceeds least_error times the mean over the groups of its input.
  // Bytes of a tile are 0 for types that have none.
  size_t (*interleaved_tile_bytes)(WeightType type, int64_t cols);
  void (*interleave)(const InterleaveChunk& chunk);
  size_t (*tile_input_bytes)(int64_t cols, int64_t n_tokens);
  // Input `token` of n_tokens; then end_tile_input() once.
  void (*quantize_for_tiles)(const float* x, int64_t cols, int64_t token, int64_t n_tokens,
                             float least_error, std::byte* dst);
  void (*end_tile_input)(int64_t cols, int64_t n_tokens, std::byte* input);
  void (*matvec_tiles)(const MatmulChunk& chunk, const std::byte* input);

  PackedProducts planes;  // in planes of int8
  PackedProducts bf16;    // both rounded to bf16, sums in f32; empty without a unit for them

  // f32 activations and weights of any type; x [n_tokens, cols].
  int exact_rows;  // chunks start at multiples of this
  size_t (*exact_scratch)(int64_t cols);
  void (*exact)(const MatmulChunk& chunk, const float* x, int64_t x_stride);

  bool rounded_tiles;  // whether AttendMethod::rounded_tiles is there
  size_t (*attend_scratch)(int key_dim, int value_dim);
  // AttendMethod::weighed_tiles, or null where it is not there. Bytes of a tile, of which a head
  // has n_rows / kAttendTile + 2 at most. stage_tiles() makes those that the chunk's rows lie in,
  // of sides without pages; false where a number is not finite: tiles are then of no use.
  size_t (*staged_tile_bytes)(int key_dim, int value_dim);
  size_t (*stage_scratch)(int key_dim, int value_dim);
  bool (*stage_tiles)(const AttendChunk& chunk);
  size_t (*weighed_scratch)(int key_dim, int value_dim, int64_t n_rows);
  int (*attend_value_stride)(int value_dim);  // of partial results
  void (*attend)(const AttendChunk& chunk);
  void (*attend_merge)(const AttendMerge& merge);
  size_t (*mass_scratch)(int key_dim);
  void (*attention_mass)(const MassChunk& job);
  void (*weigh_scores)(const ScoreWeights& job);
  void (*dot_halves)(const HalfDots& job);
  int64_t (*gram_halves)(const HalfGram& job);
  // As formats/cache_codecs.h has it, with the same bits.
  bool (*encode_rows)(const PageFormat& format, const float* src, int64_t src_stride,
                      std::byte* page, int first_row, int n_rows, std::byte* scratch);
  void (*decode_rows)(const PageFormat& format, const std::byte* page, int first_row, int n_rows,
                      int first_channel, int n_channels, float* dst, int64_t dst_stride);
  // Rows [n, width] to coefficients [n, coefficients] in a basis; `rows` is used up. `angles`, or
  // null, turn rows back first (as in SideArgs, angle_stride apart; 0: all by the same).
  size_t (*project_scratch)(int width);
  void (*project)(const BasisView& basis, int64_t n, int width, float* rows, int64_t stride,
                  const float* angles, int64_t angle_stride, float* coefficients,
                  std::byte* scratch);

  // Pages of strips (strip_args.h).
  size_t (*strip_scratch)(const StripSide& side, int n_vectors);  // of the next two
  void (*score_strips)(const StripScores& job);
  void (*add_strips)(const StripSums& job);
  size_t (*projection_scratch)(const BasisView& basis, int n_positions, int n_vectors);
  void (*project_queries)(const QueryProjection& job);
  void (*lift_values)(const ValueLift& job);

  // What the machine can do at best (kernels/machine_limits.h): work without results. `ones` has
  // kPeakValues elements; per-lane sums go to `sums` (kPeakSums). The first two return the
  // multiply-adds done; of ones, that is the total of the sums.
  int64_t (*peak_int8)(const int8_t* ones, int64_t rounds, int32_t* sums);
  int64_t (*peak_f32)(const float* ones, int64_t rounds, float* sums);
  int64_t (*peak_bf16)(const uint16_t* ones, int64_t rounds, float* sums);  // null: no such units
  // Adds up n values (a multiple of 256) once, in order, from memory.
  void (*peak_read)(const float* values, int64_t n, float* sums);
};

}  // namespace kve
