// Coded keys as tiles of int16 or bf16: what their basis and their anchor do to a page is done to
// rows, with a lift in int16 (bf16: bf16_keys.h) where the basis is dense.
#pragma once

#include "kernels/cpu/isa/tile_rows.h"
#include "kernels/cpu/isa/word_tiles.h"

#if defined(KVE_WORD_TILES)

namespace kve::KVE_ISA {

// Scratch memory.
struct WordKeys {
  CodedTiles tiles;
  float* columns;  // [width][kTile], where the basis is not dense
  WordTile coefficients;
  int32_t* rest;        // of bf16: what they have beyond that, [kTile][key_words]
  int32_t* lift_codes;  // [kLanes][key_words]
  int32_t* lift;        // [group][key_words][kLiftLanes], of the basis of that number
  float* lift_scale;    // of its rows
  bool whole;           // whether all its numbers are finite; of bf16
  int64_t stride;
  float* rows;    // [kTile][stride]
  float* cosine;  // [stride]: factors of a row's values,
  float* sine;    // and of the other values of their pairs
  int32_t basis;  // -1: none
};
WordKeys carve_word_keys(int key_dim, int value_dim, std::byte* memory);
size_t word_keys_bytes(int key_dim, int value_dim);

// The keys of a page to `tile`, of which `n` rows count. False where this way does not serve;
// nothing is written then.
bool read_word_keys(WordKeys* keys, const SideArgs& side, const PageView& page, PagePlace place,
                    int32_t n, WordTile* tile);

// Those of the rows [base, base + n) of the cache, a tile; `rows` is scratch memory.
static inline void read_word_tile(const AttendChunk& chunk, SideReader& reader, int32_t base,
                                  int32_t n, WordKeys* keys, const TileRows& rows, WordTile* tile) {
  const PageView* page = reader.coded_page(base, n);
  const PagePlace place = {base, chunk.first_pos};
  if (page != nullptr && read_word_keys(keys, chunk.k, *page, place, n, tile)) return;
  read_rows<F32Tile>(rows, reader, chunk.k.width, base, n);
  put_key_rows(rows.rows, rows.stride, chunk.k.width, n, tile);
}

}  // namespace kve::KVE_ISA

#endif
