#include "kernels/cpu/isa/word_values.h"

#if defined(KVE_WORD_TILES)

#include "kernels/cpu/isa/strip_cells.h"
#include "kernels/cpu/isa/strip_params.h"
#include "kernels/cpu/isa/strip_tiles.h"

namespace kve::KVE_ISA {

constexpr float kByteStep = 32;  // scaled_bytes()
static_assert(127 * 32 <= kWordValue);

// The base 2 logarithm of numbers from 2^-100 on, to 1e-7.
static inline F32 log2_of(F32 x) {
  const I32 bits = as_i32(x);
  // The mantissa within [0.75, 1.5), and the power that belongs to it.
  const I32 offset = bits + set_i32((127 << 23) - 0x3f400000);
  const F32 power = to_f32(shift_right(offset, 23) - set_i32(127));
  const F32 m = as_f32(blend_bits(set_i32(0x7fffff), offset, set_i32(0)) + set_i32(0x3f400000));
  // log((1 + t) / (1 - t)) = 2 (t + t^3 / 3 + ...)
  const F32 t = (m - set(1.0f)) / (m + set(1.0f));
  const F32 s = t * t;
  constexpr float kTwice = 2.88539008f;  // 2 / ln 2
  F32 p = set(kTwice / 9);
  p = fma(p, s, set(kTwice / 7));
  p = fma(p, s, set(kTwice / 5));
  p = fma(p, s, set(kTwice / 3));
  p = fma(p, s, set(kTwice));
  return fma(p, t, power);
}

// Scales of the rows; those that are none, or infinite, make their rows broken.
static void put_scales(const StripSide& side, const PageView& page, float unit, float* scale,
                       WordTile* tile) {
  static constexpr float kNoLift = 0;
  load_params<0>(param_row(side, page.data, 0, 0, page.rows), side.scale_bytes, unit / kByteStep,
                 kTile, &kNoLift, scale, nullptr);
  tile->broken_values = 0;
  for (int64_t t = 0; t < kTile; t += kLanes) {
    const F32 raw = load(scale + t);
    const F32 size = max(set(0x1p-60f), min(set(0x1p60f), raw));
    store(tile->value_log + t, log2_of(size));
    store(tile->value_inverse + t, set(1.0f) / size);
    if (sum(raw * zero()) == 0) continue;
    for (int64_t i = t; i < t + kLanes; ++i) {
      if (scale[i] - scale[i] != 0) tile->broken_values |= uint64_t{1} << i;
    }
  }
}

// A strip: 16 tokens of the 16 channels from `channel` on.
template <int kBits>
__attribute__((noinline)) static void put_words(const std::byte* strip, const int8_t* table,
                                                int64_t token, int64_t channel, WordTile* tile) {
  int32_t* to = tile->values + token / 2 * tile->value_words + channel;
  for (int cell = 0; cell < 4; ++cell, to += 2 * tile->value_words) {
    Cell w;
    unpack_cell<kBits>(strip, cell, w);
    const I32 levels = lookup_bytes(table, w[0]);
    store_i32(to, scaled_bytes<0>(levels));
    store_i32(to + tile->value_words, scaled_bytes<2>(levels));
  }
}

bool read_word_values(const StripSide& side, const PageView& page, float* scratch, WordTile* tile) {
  const bool one_scale = !side.per_channel && side.group >= side.width;
  if (tile->bf16 || !one_scale || side.levels != StripLevels::table || side.has_zero ||
      side.factors != StripFactors::none || side.strip_bits != nullptr) {
    return false;
  }
  alignas(64) int8_t table[16];
  put_scales(side, page, round_entries(side, table), scratch, tile);
  const std::byte* strip = page.data + side.code_offset;
  const auto put = [&]<int kBits>() {
    for (int64_t b = 0; b < value_strips(side.width) / 4; ++b) {
      for (int64_t t = 0; t < 4; ++t, strip += 32 * kBits) {
        put_words<kBits>(strip, table, 16 * t, 16 * b, tile);
      }
    }
  };
  with_code_bits(side.bits, true, [&]<int kBits, bool kTable>() {
    if constexpr (kTable) put.template operator()<kBits>();
  });
  return true;
}

}  // namespace kve::KVE_ISA

#endif
