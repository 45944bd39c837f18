// Tiles of a coded page whose tokens, or channels, share their scales, as floats: in lanes. The
// bits are those of decode_tiles.h.
#pragma once

#include "formats/cache/decode_tiles.h"
#include "formats/cache/lanes.h"

namespace kve {

// Whether the tile is whole, its levels are those of one table or line, and the tokens or the
// channels of it share their scales.
KVE_HD bool is_plain_tile(const CodedPage& page, int token, int channel) {
  const Coding coding = page.coding.coding;
  if (channel + kTileLanes > page.width) return false;
  if (coding == Coding::e4m3 || coding == Coding::e5m2) return false;
  if (page.strip_bits != nullptr && coding != Coding::asym) return false;
  const int at = page.per == Per::token ? channel : token;
  return at % page.group + kTileLanes <= page.group;
}

// Levels of codes in lanes.
struct LaneLevels {
  bool is_table;
  float zero;  // of levels in a line
  float table[16];
};
KVE_HD LaneLevels lane_levels(Coding coding, int bits) {
  LaneLevels levels{};
  levels.is_table = coding == Coding::iq4_nl || coding == Coding::nf4 || coding == Coding::lloyd;
  levels.zero = levels.is_table ? 0 : -level(coding, bits, 0);
  for (unsigned code = 0; levels.is_table && code < 1u << bits; ++code) {
    levels.table[code] = level(coding, bits, code);
  }
  return levels;
}

// table[codes], of 16 entries.
template <class F>
KVE_HD F look_up(const float* table, IntsOf<F> codes) {
#if defined(__GNUC__) && !defined(__clang__)
  if constexpr (kLanesOf<F> == 16) return __builtin_shuffle(load_lanes<F>(table), codes);
  if constexpr (kLanesOf<F> == 8) {
    const F low = __builtin_shuffle(load_lanes<F>(table), codes);
    const F high = __builtin_shuffle(load_lanes<F>(table + 8), codes);
    return codes < 8 ? low : high;
  }
#endif
  int32_t at[kLanesOf<F>];
  float out[kLanesOf<F>];
  std::memcpy(at, &codes, sizeof(at));
  for (int l = 0; l < kLanesOf<F>; ++l) out[l] = table[at[l]];
  return load_lanes<F>(out);
}

// Scales, zeros and factors of a plain tile, each of a token or of a channel.
struct TileParams {
  float scales[kTileLanes];
  float zeros[kTileLanes];
  float factors[kTileLanes];
};
KVE_HD void read_tile_params(const CodedPage& page, const PageOffsets& at, const std::byte* data,
                             int token, int channel, TileParams* params) {
  for (int l = 0; l < kTileLanes; ++l) {
    params->scales[l] = params->zeros[l] = 0;
    params->factors[l] = page.channels == Channels::scaled ? 1.0f : 0.0f;
  }
  const int left = page.per == Per::token ? kTileLanes : coded_width(page) - channel;
  const int coded = left < 0 ? 0 : left < kTileLanes ? left : kTileLanes;
  read_scales(page, data + at.scales, scale_index(page, token, channel), coded, params->scales);
  if (has_zero(page.coding.coding)) {
    const size_t index = zero_index(page, token, channel);
    read_halves(data + at.zeros + 2 * index, kTileLanes, params->zeros);
  }
  if (page.channels == Channels::plain) return;
  const bool of_tokens = page.channels == Channels::scaled && page.per == Per::channel;
  read_halves(data + at.factors + 2 * (of_tokens ? token : channel), kTileLanes, params->factors);
}

// The rows of a plain tile, `stride` apart.
KVE_HD void decode_plain_tile(const CodedPage& page, const PageOffsets& at, const std::byte* data,
                              int token, int channel, const Tile& tile, float* out,
                              int64_t stride) {
  TileParams params;
  read_tile_params(page, at, data, token, channel, &params);
  const LaneLevels levels = lane_levels(page.coding.coding, page.coding.bits);
  const bool by_token = page.per == Per::token;
  const bool scaled = page.channels == Channels::scaled;
  const bool of_tokens = scaled && !by_token;
  for (int l = 0; l < kTileLanes; l += kVectorLanes) {
    const Floats scales = load_lanes<Floats>(params.scales + l);
    const Floats zeros = load_lanes<Floats>(params.zeros + l);
    const Floats factors = load_lanes<Floats>(params.factors + l);
    for (int t = 0; t < kTileLanes; ++t) {
      const IntsOf<Floats> codes = load_bytes<Floats>(tile.codes[t] + l);
      const Floats level = levels.is_table ? look_up<Floats>(levels.table, codes)
                                           : to_floats<Floats>(codes) - levels.zero;
      const Floats scale = by_token ? all_lanes<Floats>(params.scales[t]) : scales;
      const Floats zero = by_token ? all_lanes<Floats>(params.zeros[t]) : zeros;
      Floats value = scale * level + zero;
      if (page.channels != Channels::plain) {
        const Floats factor = of_tokens ? all_lanes<Floats>(params.factors[t]) : factors;
        value = scaled ? value * factor : value + factor;
      }
      store_lanes(out + t * stride + l, value);
    }
  }
}

}  // namespace kve
