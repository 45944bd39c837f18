#include "kernels/cpu/isa/bf16_keys.h"

#if defined(KVE_BF16_TILES)

#include "kernels/cpu/isa/basis.h"
#include "kernels/cpu/isa/bf16_codes.h"

namespace kve::KVE_ISA {

// ---- the lift ----

// What a row of the lift is divided by.
static float factor_of(const BasisView& basis, int64_t j, const float* row) {
  float factor = 0;
  if (basis.lift8 != nullptr) {
    factor = basis.lift8_scale[j];
  } else {
    F32 most = zero();
    for (int64_t c = 0; c < basis.block_width; c += kLanes) most = max(most, abs(load(row + c)));
    factor = max_of(most);
  }
  return factor == 0 ? 1.0f : factor;
}

void round_lift(WordKeys* keys, const BasisView& basis) {
  WordTile* tile = &keys->coefficients;
  const int64_t words = tile->key_words;
  const int64_t stride = keys->tiles.stride;
  float* rows = keys->tiles.lift;
  expand_lift(basis, stride, rows);
  keys->whole = true;
  for (int64_t j = 0; j < round_up(basis.block, kTile); j += kTile) {
    const auto n = static_cast<int32_t>(least(kTile, basis.block - j));
    for (int64_t r = j; r < j + n; ++r) {
      const float factor = factor_of(basis, r, rows + r * stride);
      keys->lift_scale[r] = factor;
      for (int64_t c = 0; c < basis.block_width; c += kLanes) {
        store(rows + r * stride + c, load(rows + r * stride + c) / set(factor));
      }
    }
    round_key_rows(rows + j * stride, stride, basis.block_width, n, tile);
    keys->whole = keys->whole && tile->broken_keys == 0;
    put_lift(*tile, n, keys->lift + j * words);
  }
}

// ---- rotation by the angles of an anchor ----

namespace {

enum class Turn { none, neighbours, halves };

}  // namespace

// Of values and of the other values of their pairs, with the factors of both.
static void set_angles(const WordKeys& keys, const BasisView& basis, const float* angles) {
  const int64_t n = basis.n_pairs;
  const float* factor = keys.lift_scale;
  for (int64_t d = 0; d < keys.stride; ++d) {
    keys.cosine[d] = d < basis.dim ? factor[d] : 0.0f;
    keys.sine[d] = 0;
  }
  if (angles == nullptr) return;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t x = basis.interleaved ? 2 * i : i;
    const int64_t y = basis.interleaved ? 2 * i + 1 : n + i;
    keys.cosine[x] = factor[x] * angles[i];
    keys.cosine[y] = factor[y] * angles[i];
    keys.sine[x] = -factor[y] * angles[n + i];
    keys.sine[y] = factor[x] * angles[n + i];
  }
}

// Where the other value of the pair of value d is, for all of 16 values.
static inline int64_t other_of(const BasisView& basis, int64_t d) {
  if (d < basis.n_pairs) return d + basis.n_pairs;
  return d < 2 * basis.n_pairs ? d - basis.n_pairs : d;
}

// 32 values of n rows to words. Returns other than zero in some lane where a number is none.
template <Turn kTurn>
__attribute__((noinline)) static F32 round_values(const WordKeys& keys, const BasisView& basis,
                                                  int64_t d, int32_t n, int64_t words,
                                                  int32_t* to) {
  const F32 cosine[2] = {load(keys.cosine + d), load(keys.cosine + d + kLanes)};
  const F32 sine[2] = {load(keys.sine + d), load(keys.sine + d + kLanes)};
  const int64_t other[2] = {other_of(basis, d), other_of(basis, d + kLanes)};
  const float* row = keys.rows;
  F32 bad = zero();
  for (int32_t r = 0; r < n; ++r, row += keys.stride, to += words) {
    F32 values[2];
    KVE_UNROLL(2)
    for (int i = 0; i < 2; ++i) {
      const F32 own = load(row + d + i * kLanes);
      values[i] = own * cosine[i];
      if constexpr (kTurn == Turn::neighbours) values[i] = fma(swap_pairs(own), sine[i], values[i]);
      if constexpr (kTurn == Turn::halves)
        values[i] = fma(load(row + other[i]), sine[i], values[i]);
      bad = fma(values[i], zero(), bad);
    }
    store_i32(to, round_bf16_pair(values[0], values[1]));
  }
  return bad;
}

template <Turn kTurn>
static bool round_rows(const WordKeys& keys, const BasisView& basis, int32_t n, WordTile* tile) {
  F32 bad = zero();
  for (int64_t w = 0; w < tile->key_words; w += kLanes) {
    bad = bad + round_values<kTurn>(keys, basis, 2 * w, n, tile->key_words, tile->keys + w);
  }
  return sum(bad) == 0;
}

// The same number by number, for pairs that are not side by side in lanes.
static void turn_rows(const WordKeys& keys, const BasisView& basis, int32_t n, float* to) {
  for (int64_t r = 0; r < n; ++r, to += keys.stride) {
    const float* row = keys.rows + r * keys.stride;
    for (int64_t d = 0; d < keys.stride; ++d) {
      const int64_t other = basis.interleaved ? d ^ 1 : other_of(basis, d);
      to[d] = row[d] * keys.cosine[d] + row[other] * keys.sine[d];
    }
  }
}

// ---- pages ----

bool round_lifted_keys(WordKeys* keys, const StripSide& side, const PageView& page,
                       const BasisView& basis, const float* angles, int32_t n, WordTile* tile) {
  if (!keys->whole) return false;
  if (!round_key_codes(side, page, keys->tiles.params, &keys->coefficients, keys->rest))
    return false;
  lift_bf16(keys->coefficients, keys->rest, basis.block_width, keys->lift, keys->stride,
            keys->rows);
  set_angles(*keys, basis, angles);
  tile->broken_keys = 0;
  bool whole = false;
  if (angles == nullptr) {
    whole = round_rows<Turn::none>(*keys, basis, n, tile);
  } else if (basis.interleaved) {
    whole = round_rows<Turn::neighbours>(*keys, basis, n, tile);
  } else if (basis.n_pairs % kLanes == 0) {
    whole = round_rows<Turn::halves>(*keys, basis, n, tile);
  }
  if (whole) return true;
  turn_rows(*keys, basis, n, keys->columns);
  round_key_rows(keys->columns, keys->stride, basis.dim, n, tile);
  return true;
}

}  // namespace kve::KVE_ISA

#endif
