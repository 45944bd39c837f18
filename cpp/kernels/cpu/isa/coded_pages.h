// One side of a cache whose pages are read code by code: their scores with the queries, and their
// sums times weights, in the basis in which they are written.
#pragma once

#include "kernels/cpu/isa/attend.h"
#include "kernels/cpu/isa/basis.h"
#include "kernels/cpu/isa/strip_pages.h"

namespace kve::KVE_ISA {

// Rows [first, end) of the cache are coded, page after page; all pages but the last are full.
struct CodedRows {
  int32_t first;
  int32_t end;
};
static inline CodedRows coded_rows(const SideArgs& side) {
  if (side.strips == nullptr || side.n_pages == 0) return {0, 0};
  const int32_t first = side.sink_rows;
  return {first, first + (side.n_pages - 1) * kTile + side.pages[side.n_pages - 1].rows};
}

// Pages [first, first + n) of a side, at most kRunPages.
struct CodedRun {
  int32_t first;
  int32_t n;
};

// For so many pages queries are projected at a time: the tile unit needs 700 cycles to wake up.
#if defined(KVE_ISA_AMX)
constexpr int kProjectedPages = 32;
#else
constexpr int kProjectedPages = kRunPages;
#endif

struct CodedKeys {
  const SideArgs* side;
  int32_t first_pos;  // of the cache's row 0
  int64_t n_vectors;
  const float* queries;  // [n_vectors][query_stride]
  int64_t query_stride;
  // Of the basis of the latest pages; -1: there were none.
  int32_t basis;
  KeyStrips strips;
  Projection projection;
  StripQueries coefficients;
  CodedRun turned;      // pages whose queries are in `projected`, of an anchored basis
  int64_t stride;       // between rows of the next two
  float* projected;     // [kProjectedPages][n_vectors]
  float* page_queries;  // [kRunPages][n_vectors]: times the channels of each page
  std::byte* strip_memory;
  std::byte* projection_memory;
};
size_t coded_keys_bytes(int key_dim);
CodedKeys start_coded_keys(const AttendChunk& chunk, const AttendState& state, std::byte* memory);
// scores[v * kRunStride + p * 64 + t]; rows past the end of a page get some number.
void score_coded(CodedKeys* keys, CodedRun pages, const StripRun& ahead, float* scores);

struct CodedValues {
  const SideArgs* side;
  int64_t n_vectors;
  int32_t basis;  // of the latest pages; -1: there were none
  bool open;      // whether sums were added since they were last finished
  ValueStrips strips;
  int64_t stride;    // of sums
  float* sums;       // [n_vectors][stride], of coefficients
  float* page_sums;  // the same, of one page
  // Where the sums are left in their basis, [n_vectors] rows kept_stride apart; null: they are
  // lifted and added to the state's.
  float* kept;
  int64_t kept_stride;
  std::byte* strip_memory;
};
size_t coded_values_bytes(int value_dim);
CodedValues start_coded_values(const AttendChunk& chunk, std::byte* memory);
// weights[v * kRunStride + p * 64 + t], zero past the rows of a page; they are used up. Sums in a
// basis that comes to its end are added to the state's.
void add_coded(CodedValues* values, const AttendState& state, CodedRun pages, const StripRun& ahead,
               float* weights);
void finish_coded(CodedValues* values, const AttendState& state);

// For a chunk that is prepared (AttendChunk).
static inline void resume_coded(const AttendChunk& chunk, CodedKeys* keys, CodedValues* values) {
  keys->side = &chunk.k;
  values->side = &chunk.v;
}
// Makes room for sums that are kept.
void keep_sums(const AttendChunk& chunk, const AttendState& state, CodedValues* values);

// The factors of a page.
static inline const uint16_t* factors_of(const SideArgs& side, int32_t page) {
  const PageView& view = side.pages[page];
  return reinterpret_cast<const uint16_t*>(view.data + side.strips[view.basis].factor_offset);
}

// Scores or weights [n_vectors][kRunStride] of some pages, times the factors of their tokens.
static inline void scale_tokens(const SideArgs& side, CodedRun pages, int64_t n_vectors,
                                float* scores) {
  for (int32_t p = 0; p < pages.n; ++p) {
    const uint16_t* factors = factors_of(side, pages.first + p);
    for (int64_t t = 0; t < kStripTokens; t += kLanes) {
      const F32 factor = load_f16(factors + t);
      float* at = scores + p * kStripTokens + t;
      for (int64_t v = 0; v < n_vectors; ++v, at += kRunStride) store(at, load(at) * factor);
    }
  }
}

}  // namespace kve::KVE_ISA
