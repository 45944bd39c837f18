#include "kernels/cpu/isa/word_keys.h"

#if defined(KVE_WORD_TILES)

#include "kernels/cpu/isa/basis.h"
#include "kernels/cpu/isa/bf16_codes.h"
#include "kernels/cpu/isa/bf16_keys.h"

namespace kve::KVE_ISA {

static WordKeys carve(Carver& carver, int key_dim, int value_dim) {
  WordKeys keys = {};
  const int64_t groups = round_up(key_dim, kLiftLanes);
  keys.stride = round_up(key_dim, 2 * kLanes);
  const auto tile_bytes = static_cast<int64_t>(coded_tiles_bytes(key_dim, value_dim));
  keys.tiles = carve_coded_tiles(key_dim, value_dim, carver.take<std::byte>(tile_bytes));
  keys.columns = carver.take<float>(keys.stride * kTile);
  keys.coefficients = carve_word_tile(carver, key_dim, 1);
  keys.rest = carver.take<int32_t>(kTile * keys.coefficients.key_words);
  keys.lift_codes = carver.take<int32_t>(kLanes * keys.coefficients.key_words);
  keys.lift = carver.take<int32_t>(groups * keys.coefficients.key_words);
  keys.lift_scale = carver.take<float>(groups);
  keys.rows = carver.take<float>(kTile * keys.stride);
  keys.cosine = carver.take<float>(keys.stride);
  keys.sine = carver.take<float>(keys.stride);
  keys.basis = -1;
  return keys;
}

WordKeys carve_word_keys(int key_dim, int value_dim, std::byte* memory) {
  Carver carver(memory);
  return carve(carver, key_dim, value_dim);
}
size_t word_keys_bytes(int key_dim, int value_dim) {
  Carver carver(nullptr);
  carve(carver, key_dim, value_dim);
  return carver.size();
}

#if !defined(KVE_BF16_TILES)

// Rows of the lift take the place of queries: their norms bound the sums in the same way.
static void quantize_lift(WordKeys* keys, const BasisView& basis) {
  const CodedTiles& tiles = keys->tiles;
  expand_lift(basis, tiles.stride, tiles.lift);
  for (int64_t j = 0; j < basis.block; ++j) {
    for (int64_t c = round_up(basis.block_width, kLanes); c < tiles.stride; c += kLanes) {
      store(tiles.lift + j * tiles.stride + c, zero());
    }
  }
  quantize_queries(tiles.lift, tiles.stride, basis.block, keys->coefficients.key_words, kLiftLanes,
                   keys->lift_codes, keys->lift, keys->lift_scale);
}

// ---- rotation by the angles of an anchor ----

// Pairs side by side: out = row * cosine + other of the pair * sine, whose sign is that of the
// lane.
static void turn_neighbours(const WordKeys& keys, const float* angles, int64_t n_pairs,
                            int64_t n_rows) {
  for (int64_t d = 0; d < keys.stride; ++d) {
    const int64_t i = d / 2;
    keys.cosine[d] = i < n_pairs ? angles[i] : 1.0f;
    keys.sine[d] = i < n_pairs ? (d % 2 == 0 ? -angles[n_pairs + i] : angles[n_pairs + i]) : 0.0f;
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t d = 0; d < round_up(2 * n_pairs, kLanes); d += kLanes) {
      float* at = keys.rows + r * keys.stride + d;
      const F32 row = load(at);
      store(at, fma(swap_pairs(row), load(keys.sine + d), row * load(keys.cosine + d)));
    }
  }
}

// Pairs (i, i + n_pairs).
static void turn_halves(const WordKeys& keys, const float* angles, int64_t n, int64_t n_rows) {
  for (int64_t r = 0; r < n_rows; ++r) {
    float* x = keys.rows + r * keys.stride;
    float* y = x + n;
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t some = least(n - i, kLanes);
      const F32 cosine = load_n(angles + i, some);
      const F32 sine = load_n(angles + n + i, some);
      const F32 a = load_n(x + i, some);
      const F32 b = load_n(y + i, some);
      store_n(x + i, fma(zero() - b, sine, a * cosine), some);
      store_n(y + i, fma(a, sine, b * cosine), some);
    }
  }
}

// ---- pages ----

static void read_lifted_keys(WordKeys* keys, const StripSide& side, const PageView& page,
                             const BasisView& basis, const float* angles, int32_t n,
                             WordTile* tile) {
  WordTile* coefficients = &keys->coefficients;
  key_elements(side, page, false, keys->tiles.coefficients, keys->tiles.params);
  quantize_key_columns(keys->tiles.coefficients, basis.block_width, n, coefficients);
  lift_rows(*coefficients, n, (basis.block_width + 1) / 2, keys->lift, keys->lift_scale,
            keys->stride, keys->rows, keys->stride);
  if (angles != nullptr) {
    basis.interleaved ? turn_neighbours(*keys, angles, basis.n_pairs, n)
                      : turn_halves(*keys, angles, basis.n_pairs, n);
  }
  quantize_key_rows(keys->rows, keys->stride, basis.dim, n, tile);
  tile->broken_keys |= coefficients->broken_keys;
}

#endif

bool read_word_keys(WordKeys* keys, const SideArgs& side, const PageView& page, PagePlace place,
                    int32_t n, WordTile* tile) {
  const StripSide& strips = side.strips[page.basis];
  const BasisView* basis = side.bases == nullptr ? nullptr : side.bases + page.basis;
  if (basis == nullptr || basis->block != basis->dim) {
#if defined(KVE_BF16_TILES)
    if (basis == nullptr && round_key_codes(strips, page, keys->tiles.params, tile, nullptr))
      return true;
#endif
    if (!read_coded_keys(&keys->tiles, side, page, place, false, keys->columns)) return false;
    put_key_columns(keys->columns, side.width, n, tile);
    return true;
  }
  const bool is_new = page.basis != keys->basis;
  keys->basis = page.basis;
  const float* angles = basis->anchor == 0 ? nullptr : angles_at(side, *basis, place);
#if defined(KVE_BF16_TILES)
  if (is_new) round_lift(keys, *basis);
  return round_lifted_keys(keys, strips, page, *basis, angles, n, tile);
#else
  if (is_new) quantize_lift(keys, *basis);
  read_lifted_keys(keys, strips, page, *basis, angles, n, tile);
  return true;
#endif
}

}  // namespace kve::KVE_ISA

#endif
