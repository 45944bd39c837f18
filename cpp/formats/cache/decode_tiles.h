// Tiles of 16 tokens and 16 channels of a coded page, which are whole cells of strips, as floats;
// the loops are written for compilers to vectorise.
#pragma once

#include "formats/cache/coded_page.h"
#include "formats/cache/page_codes.h"
#include "formats/cache/plain_floats.h"

namespace kve {

constexpr int kTileLanes = 16;

// Unnamed: only these functions know it.
namespace {

struct Tile {
  uint8_t codes[kTileLanes][kTileLanes];  // [token][channel]
  float levels[kTileLanes][kTileLanes];
  float scales[kTileLanes][kTileLanes];
  float zeros[kTileLanes][kTileLanes];
};

}  // namespace

// Reads codes of tokens [token, token + 16) and channels [channel, channel + 16); 0 past the width.
// `strips`: the strip of the first channel (of values: and of token 0).
KVE_HD void read_codes(const CodedPage& page, const std::byte* strips, int token, int channel,
                       Tile* tile) {
  uint32_t words[4][16];  // the four codes of a lane of a cell
  if (page.values) {
    const int first = channel / 16 * 4;
    for (int s = first; s < first + token / 16; ++s) strips += strip_bytes(bits_of_strip(page, s));
    const int bits = bits_of_strip(page, first + token / 16);
    for (int c = 0; c < 4; ++c) unpack_cell(strips, bits, c, reinterpret_cast<uint8_t*>(words[c]));
    for (int t = 0; t < kTileLanes; ++t) {
      const uint32_t* from = words[t / 4];
      const int shift = 8 * (t % 4);
      for (int l = 0; l < 16; ++l) tile->codes[t][l] = static_cast<uint8_t>(from[l] >> shift);
    }
    return;
  }
  for (int k = 0; k < 4; ++k) {
    const int strip = channel / 4 + k;
    const int bits = strip < key_strips(page.width) ? bits_of_strip(page, strip) : 0;
    unpack_cell(strips, bits, token / 16, reinterpret_cast<uint8_t*>(words[k]));
    strips += strip_bytes(bits);
  }
  uint32_t rows[64];
  for (int t = 0; t < 16; ++t) {
    rows[4 * t] = words[0][t];
    rows[4 * t + 1] = words[1][t];
    rows[4 * t + 2] = words[2][t];
    rows[4 * t + 3] = words[3][t];
  }
  std::memcpy(tile->codes, rows, sizeof(rows));
}

// Levels of codes of `bits` bits, of channels [first, first + n) of the tile.
KVE_HD void find_levels(Coding coding, int bits, int first, int n, Tile* tile) {
  if (bits == 8 && (coding == Coding::e4m3 || coding == Coding::e5m2)) {
    const int mantissa_bits = coding == Coding::e4m3 ? 3 : 2;
    for (int t = 0; t < kTileLanes; ++t) {
      for (int l = first; l < first + n; ++l) {
        tile->levels[t][l] = fp8_level(mantissa_bits, tile->codes[t][l]);
      }
    }
    return;
  }
  if (coding == Coding::iq4_nl || coding == Coding::nf4 || coding == Coding::lloyd) {
    float table[16] = {};
    for (unsigned code = 0; code < 1u << bits; ++code) table[code] = level(coding, bits, code);
    for (int t = 0; t < kTileLanes; ++t) {
      for (int l = first; l < first + n; ++l) tile->levels[t][l] = table[tile->codes[t][l]];
    }
    return;
  }
  const float zero = -level(coding, bits, 0);
  for (int t = 0; t < kTileLanes; ++t) {
    for (int l = first; l < first + n; ++l) {
      tile->levels[t][l] = static_cast<float>(tile->codes[t][l]) - zero;
    }
  }
}

// Entries [index, index + n) of the scales.
KVE_HD void read_scales(const CodedPage& page, const std::byte* scales, size_t index, int n,
                        float* to) {
  if (page.coding.scale == ScaleFormat::half) return read_halves(scales + 2 * index, n, to);
  for (int i = 0; i < n; ++i) {
    to[i] = decode_scale(ScaleFormat::log8, static_cast<uint16_t>(scales[index + i]));
  }
}

// Scales and zeros of the tile, of `n` channels.
KVE_HD void read_params(const CodedPage& page, const PageOffsets& at, const std::byte* data,
                        int token, int channel, int n, Tile* tile) {
  const std::byte* scales = data + at.scales;
  const std::byte* zeros = has_zero(page.coding.coding) ? data + at.zeros : nullptr;
  if (page.per == Per::channel) {
    const int left = coded_width(page) - channel;
    const int coded = left < 0 ? 0 : left < n ? left : n;
    for (int t = 0; t < kTileLanes; ++t) {
      if (t > 0 && (token + t) % page.group != 0) {
        std::memcpy(tile->scales[t], tile->scales[t - 1], sizeof(tile->scales[t]));
        std::memcpy(tile->zeros[t], tile->zeros[t - 1], sizeof(tile->zeros[t]));
        continue;
      }
      for (int l = 0; l < kTileLanes; ++l) tile->scales[t][l] = tile->zeros[t][l] = 0;
      read_scales(page, scales, scale_index(page, token + t, channel), coded, tile->scales[t]);
      if (zeros == nullptr) continue;
      read_halves(zeros + 2 * zero_index(page, token + t, channel), n, tile->zeros[t]);
    }
    return;
  }
  for (int l = 0; l < n;) {
    const size_t index = scale_index(page, token, channel + l);
    float scale[kTileLanes];
    float zero[kTileLanes] = {};
    read_scales(page, scales, index, kTileLanes, scale);
    if (zeros != nullptr) read_halves(zeros + 2 * index, kTileLanes, zero);
    const int in_group = page.group - (channel + l) % page.group;
    const int end = l + in_group < n ? l + in_group : n;
    for (int t = 0; t < kTileLanes; ++t) {
      for (int k = l; k < end; ++k) {
        tile->scales[t][k] = scale[t];
        tile->zeros[t][k] = zero[t];
      }
    }
    l = end;
  }
  for (int t = 0; t < kTileLanes; ++t) {
    for (int l = n; l < kTileLanes; ++l) tile->scales[t][l] = tile->zeros[t][l] = 0;
  }
}

// Levels to values, in tile->levels.
KVE_HD void find_values(const CodedPage& page, const PageOffsets& at, const std::byte* data,
                        int token, int channel, int n, Tile* tile) {
  for (int t = 0; t < kTileLanes; ++t) {
    for (int l = 0; l < kTileLanes; ++l) {
      tile->levels[t][l] = tile->scales[t][l] * tile->levels[t][l] + tile->zeros[t][l];
    }
  }
  if (page.channels == Channels::plain) return;
  const std::byte* factors = data + at.factors;
  const bool scaled = page.channels == Channels::scaled;
  float factor[kTileLanes] = {};
  if (scaled && page.per == Per::channel) {
    read_halves(factors + 2 * token, kTileLanes, factor);
    for (int t = 0; t < kTileLanes; ++t) {
      for (int l = 0; l < kTileLanes; ++l) tile->levels[t][l] *= factor[t];
    }
    return;
  }
  read_halves(factors + 2 * channel, n, factor);
  for (int t = 0; t < kTileLanes; ++t) {
    for (int l = 0; l < kTileLanes; ++l) {
      const float value = tile->levels[t][l];
      tile->levels[t][l] = scaled ? value * factor[l] : value + factor[l];
    }
  }
}

// Values of tokens [token, token + 16) and channels [channel, channel + 16), to tile->levels.
KVE_HD void decode_any_tile(const CodedPage& page, const PageOffsets& at, const std::byte* data,
                            int token, int channel, Tile* tile) {
  const int left = page.width - channel;
  const int n = left < kTileLanes ? left : kTileLanes;
  const Coding coding = page.coding.coding;
  // Levels that differ between strips.
  if (!page.values && page.strip_bits != nullptr && coding != Coding::asym) {
    for (int k = 0; 4 * k < n; ++k) {
      const int bits = bits_of_strip(page, channel / 4 + k);
      find_levels(coding, bits > 0 ? bits : page.coding.bits, 4 * k, 4, tile);
    }
  } else {
    const int bits = page.values ? bits_of_strip(page, channel / 16 * 4) : page.coding.bits;
    find_levels(coding, bits > 0 ? bits : page.coding.bits, 0, kTileLanes, tile);
  }
  read_params(page, at, data, token, channel, n, tile);
  find_values(page, at, data, token, channel, n, tile);
}

}  // namespace kve
