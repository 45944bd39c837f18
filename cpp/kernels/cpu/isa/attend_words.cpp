// Attention of many queries in int16: every tile of rows meets all groups of queries
// (word_group.h).
#include "kernels/cpu/isa/attend.h"

#if defined(KVE_WORD_TILES)

#include <string.h>

#include "kernels/cpu/isa/basis.h"
#include "kernels/cpu/isa/bf16_codes.h"
#include "kernels/cpu/isa/next_tile.h"
#include "kernels/cpu/isa/tile_rows.h"
#include "kernels/cpu/isa/word_group.h"
#include "kernels/cpu/isa/word_keys.h"
#include "kernels/cpu/isa/word_values.h"

namespace kve::KVE_ISA {

namespace {

// Tiles that a group of queries meets before the next does. With the tile unit, what a group holds
// would take longer to come from the second cache than its products do.
constexpr int kTilesAtOnce = kBf16Tiles ? 8 : 1;

struct WordWork {
  TileRows rows;
  WordTile tiles[kTilesAtOnce];
  GroupWork group;
  float* lift;  // [value_dim][channels]
  WordTile lift_tile;
  int32_t* lift_lanes;  // [channels / 2][kWordLanes]
  float* lift_scale;    // [kWordLanes]
  // Of bf16: what rows of the lift and lanes have beyond.
  int32_t* lift_rest;
  int32_t* lane_rest;
  WordKeys keys;
  std::byte* lifting;
  size_t size;

  // lifted: numbers of the rows that are rebuilt.
  WordWork(std::byte* data, int key_dim, int value_dim, int lifted) {
    Carver carver(data);
    group = carve_group_work(carver, key_dim, value_dim);
    const int64_t channels = group.channels;
    const int64_t key_stride = 2 * group.key_words;
    rows = carve_rows(carver, key_stride > channels ? key_stride : channels);
    for (WordTile& tile : tiles) {
      tile = carve_word_tile(carver, key_dim, value_dim);
      tile.bf16 = kBf16Tiles;
    }
    lift = carver.take<float>(round_up(value_dim, kLanes) * channels);
    lift_tile = carve_word_tile(carver, value_dim, 1);
    lift_tile.bf16 = kBf16Tiles;
    lift_lanes = carver.take<int32_t>(channels / 2 * kWordLanes);
    lift_scale = carver.take<float>(kWordLanes);
    lift_rest = carver.take<int32_t>(kTile * lift_tile.key_words);
    lane_rest = carver.take<int32_t>(channels / 2 * kWordLanes);
    const auto key_bytes = static_cast<int64_t>(word_keys_bytes(key_dim, value_dim));
    keys = carve_word_keys(key_dim, value_dim, carver.take<std::byte>(key_bytes));
    lifting = carver.take<std::byte>(static_cast<int64_t>(lift_scratch(lifted)));
    size = carver.size();
  }
};

}  // namespace

// Values straight from their codes. False where this way does not serve.
static bool put_value_codes(const StripSide& side, const PageView& page, float* scratch,
                            WordTile* tile) {
#if defined(KVE_BF16_TILES)
  return round_value_codes(side, page, scratch, tile);
#else
  return read_word_values(side, page, scratch, tile);
#endif
}

namespace {

// The tiles of a chunk, one after the other.
class WordLoop {
 public:
  WordLoop(const AttendChunk& chunk, const AttendState& state, WordWork& work)
      : chunk_(chunk),
        state_(state),
        work_(work),
        keys_(chunk.k, chunk.first_pos, false, work.lifting),
        values_(chunk.v, chunk.first_pos, false, work.lifting),
        padded_(round_up(state.n_vectors, kWordLanes)) {
    start_groups(chunk, state, work.group);
  }

  void attend(int32_t first, int32_t end) {
    for_tiles(chunk_, first, end, [&](int32_t base, int32_t n) {
      const PageView* page = values_.coded_page(base, n);
      const bool in_basis = page != nullptr && chunk_.v.bases != nullptr;
      if (in_basis && page->basis != basis_) {
        attend_read(end);
        begin_basis(page->basis);
      }
      WordTile* tile = work_.tiles + n_read_;
      ReadTile& read = read_[n_read_++];
      read = {base, n, in_basis ? chunk_.v.n_channels : chunk_.v.width,
              in_basis ? work_.group.coded : work_.group.sums};
      read_word_tile(chunk_, keys_, base, n, &work_.keys, work_.rows, tile);
      read_values(page, read, tile);
      if (n_read_ == kTilesAtOnce) attend_read(end);
    });
    attend_read(end);
    lift();
    finish_groups(state_, work_.group);
  }

 private:
  struct ReadTile {
    int32_t base;
    int32_t n;
    int value_width;
    float* sums;
  };

  // Every group of queries against the tiles that were read; those that follow them are asked for
  // meanwhile.
  void attend_read(int32_t end) {
    if (n_read_ == 0) return;
    const ReadTile& last = read_[n_read_ - 1];
    const int32_t rows = last.base + last.n - read_[0].base;
    const int64_t shares = padded_ / kWordLanes;
    NextTile ahead[kTilesAtOnce];
    for (int i = 0; i < n_read_; ++i) {
      ahead[i] = NextTile(chunk_, keys_, values_, read_[i].base + rows, end, shares);
    }
    for (int64_t lane = 0; lane < padded_; lane += kWordLanes) {
      for (int i = 0; i < n_read_; ++i) {
        const ReadTile& read = read_[i];
        ahead[i].prefetch();
        attend_group({chunk_, work_.group, work_.tiles[i], state_.n_vectors, read.base, read.n,
                      read.value_width, read.sums, basis_ >= 0, nullptr},
                     lane);
      }
    }
    n_read_ = 0;
  }

  void read_values(const PageView* page, const ReadTile& read, WordTile* tile) {
    if (page == nullptr) {
      read_rows<F32Tile>(work_.rows, values_, read.value_width, read.base, read.n);
    } else if (put_value_codes(chunk_.v.strips[page->basis], *page, work_.keys.tiles.params,
                               tile)) {
      return;
    } else {
      value_elements(chunk_.v.strips[page->basis], *page, false, work_.rows.rows, work_.rows.stride,
                     work_.keys.tiles.params);
    }
    put_value_rows(work_.rows.rows, work_.rows.stride, read.value_width, read.n, tile);
  }

  void begin_basis(int32_t basis) {
    lift();
    memset(work_.group.coded, 0,
           sizeof(float) * static_cast<size_t>(padded_ * work_.group.channels));
    basis_ = basis;
  }

  // Sums in a basis are added to those of values.
  void lift() {
    if (basis_ < 0) return;
    const BasisView& basis = chunk_.v.bases[basis_];
    expand_lift(basis, work_.group.channels, work_.lift);
    if (basis.block == basis.dim && basis.dim % kWordRows == 0) {
      lift_dense(basis);
    } else {
      lift_blocks(basis);
    }
    basis_ = -1;
  }

  // Rows of the lift are a tile of keys, in int16 or in bf16.
  void lift_dense(const BasisView& basis) {
    WordTile* tile = &work_.lift_tile;
    const int64_t stride = work_.group.channels;
    for (int64_t first = 0; first < basis.dim; first += kTile) {
      const auto n = static_cast<int32_t>(least(kTile, basis.dim - first));
      const float* rows = work_.lift + first * stride;
      clear_row_ends(basis.block_width, n, work_.lift + first * stride);
      put_key_rows(rows, stride, basis.block_width, n, tile);
#if defined(KVE_BF16_TILES)
      round_key_rests(rows, stride, basis.block_width, n, *tile, work_.lift_rest);
#endif
      for (int64_t lane = 0; lane < padded_; lane += kWordLanes) {
        lift_group(basis, n, work_.group.coded + lane * stride,
                   work_.group.sums + lane * stride + first * kWordLanes);
      }
    }
  }
  // Coded sums of a group, times the n rows in the tile.
  void lift_group(const BasisView& basis, int32_t n, const float* coded, float* to) {
#if defined(KVE_BF16_TILES)
    round_lanes(coded, round_up(basis.block_width, kBf16Rows) / 2, work_.lift_lanes,
                work_.lane_rest);
    add_lifted_bf16(work_.lift_tile, work_.lift_rest, n, basis.block_width, work_.lift_lanes,
                    work_.lane_rest, to);
#else
    const int64_t words = (basis.block_width + 1) / 2;
    quantize_lanes(coded, words, work_.lift_lanes, work_.lift_scale);
    for (int32_t r = 0; r < n; r += kWordRows) {
      add_lifted(work_.lift_tile, r, words, work_.lift_lanes, work_.lift_scale,
                 to + r * kWordLanes);
    }
#endif
  }
  // Rows of the lift are zero past their end.
  void clear_row_ends(int64_t width, int64_t n, float* rows) const {
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = round_up(width, kLanes); c < work_.group.channels; c += kLanes) {
        store(rows + r * work_.group.channels + c, zero());
      }
    }
  }

  void lift_blocks(const BasisView& basis) {
    for (int64_t lane = 0; lane < padded_; lane += kWordLanes) {
      const float* from = work_.group.coded + lane * work_.group.channels;
      float* to = work_.group.sums + lane * work_.group.channels;
      for (int64_t b = 0; b < basis.dim / basis.block; ++b) {
        gemm(basis.block, kWordLanes, basis.block_width, work_.lift, work_.group.channels,
             from + b * basis.block_width * kWordLanes, kWordLanes,
             to + b * basis.block * kWordLanes, kWordLanes, true);
      }
    }
  }

  const AttendChunk& chunk_;
  const AttendState& state_;
  WordWork& work_;
  SideReader keys_;
  SideReader values_;
  int64_t padded_;      // queries
  int32_t basis_ = -1;  // of the coded sums; -1: there are none
  ReadTile read_[kTilesAtOnce];
  int n_read_ = 0;
};

}  // namespace

size_t attend_words_scratch(int key_dim, int value_dim) {
  return WordWork(nullptr, key_dim, value_dim, key_dim > value_dim ? key_dim : value_dim).size;
}

void attend_words(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                  std::byte* scratch) {
  const GroupUnit unit;
  WordWork work(scratch, chunk.k.width, chunk.v.width, row_numbers(chunk));
  WordLoop(chunk, state, work).attend(first, end);
}

}  // namespace kve::KVE_ISA

#endif
