#include "kernels/cpu/isa/coded_tiles.h"

#include "kernels/cpu/isa/basis.h"

namespace kve::KVE_ISA {

static CodedTiles carve(Carver& carver, int key_dim, int value_dim) {
  CodedTiles tiles = {};
  tiles.stride = round_up(key_dim, 2 * kLanes);
  tiles.params = carver.take<float>(strip_tile_floats(key_dim > value_dim ? key_dim : value_dim));
  tiles.coefficients = carver.take<float>(round_up(key_dim, 4) * kAttendTile);
  tiles.lifted = carver.take<float>(key_dim * int64_t{kAttendTile});
  tiles.lift = carver.take<float>(key_dim * tiles.stride);
  tiles.basis = -1;
  return tiles;
}

CodedTiles carve_coded_tiles(int key_dim, int value_dim, std::byte* memory) {
  Carver carver(memory);
  return carve(carver, key_dim, value_dim);
}
size_t coded_tiles_bytes(int key_dim, int value_dim) {
  Carver carver(nullptr);
  carve(carver, key_dim, value_dim);
  return carver.size();
}

#if defined(KVE_BF16_DOT)
// As expand_lift(), in bf16.
static void round_lift(const BasisView& basis, int64_t stride, uint16_t* to) {
  for (int64_t j = 0; j < basis.block; ++j) {
    for (int64_t c = 0; c < basis.block_width; c += kLanes) {
      store_bf16(to + j * stride + c, lift_numbers(basis, j, c));
    }
  }
}
#endif

// Rotates the rows of pairs, whose lanes are tokens, by the angles of an anchor.
static void turn_rows(const BasisView& basis, const float* angles, float* rows) {
  const int64_t n = basis.n_pairs;
  for (int64_t i = 0; i < n; ++i) {
    const F32 cosine = set(angles[i]);
    const F32 sine = set(angles[n + i]);
    float* x = rows + (basis.interleaved ? 2 * i : i) * kAttendTile;
    float* y = rows + (basis.interleaved ? 2 * i + 1 : n + i) * kAttendTile;
    for (int64_t t = 0; t < kAttendTile; t += kLanes) {
      const F32 a = load(x + t);
      const F32 b = load(y + t);
      store(x + t, fma(zero() - b, sine, a * cosine));
      store(y + t, fma(a, sine, b * cosine));
    }
  }
}

#if defined(KVE_BF16_DOT)
// Rows as pairs of bf16.
static void pair_rows(const float* rows, int64_t n, float* elements) {
  for (int64_t d = 0; d < n; d += 2, elements += kAttendTile) {
    for (int64_t t = 0; t < kAttendTile; t += kLanes) {
      const float* row = rows + d * kAttendTile + t;
      store(elements + t, pair_bf16(load(row), d + 1 < n ? load(row + kAttendTile) : zero()));
    }
  }
}
#endif

bool read_coded_keys(CodedTiles* tiles, const SideArgs& side, const PageView& page, PagePlace place,
                     bool rounded, float* keys) {
  const StripSide& strips = side.strips[page.basis];
  if (side.bases == nullptr) {
    key_elements(strips, page, rounded, keys, tiles->params);
    return true;
  }
  const BasisView& basis = side.bases[page.basis];
  const int64_t n_blocks = basis.dim / basis.block;
  const int64_t per_element = rounded ? 2 : 1;
  if (n_blocks > 1 && basis.block_width % per_element != 0) return false;
  if (page.basis != tiles->basis) {
#if defined(KVE_BF16_DOT)
    if (rounded) round_lift(basis, tiles->stride, reinterpret_cast<uint16_t*>(tiles->lift));
#endif
    if (!rounded) expand_lift(basis, tiles->stride, tiles->lift);
    tiles->basis = page.basis;
  }
  key_elements(strips, page, rounded, tiles->coefficients, tiles->params);
  float* rows = rounded ? tiles->lifted : keys;
  const int64_t depth = (basis.block_width + per_element - 1) / per_element;
  auto product = gemm;
#if defined(KVE_BF16_DOT)
  if (rounded) product = gemm_bf16;
#endif
  for (int64_t b = 0; b < n_blocks; ++b) {
    product(basis.block, kAttendTile, depth, tiles->lift, tiles->stride / per_element,
            tiles->coefficients + b * depth * kAttendTile, kAttendTile,
            rows + b * basis.block * kAttendTile, kAttendTile, false);
  }
  if (basis.anchor != 0) {
    turn_rows(basis, angles_at(side, basis, place), rows);
  }
#if defined(KVE_BF16_DOT)
  if (rounded) pair_rows(rows, basis.dim, keys);
#endif
  return true;
}

}  // namespace kve::KVE_ISA
