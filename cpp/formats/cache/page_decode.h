// Rows of a coded page as floats. Compiled for any processor (cache_codecs.cpp) and for each
// instruction set (kernels/), with the same bits.
#pragma once

#include "formats/cache/coded_page.h"
#include "formats/cache/decode_lanes.h"
#include "formats/cache/decode_tiles.h"
#include "formats/cache/outliers.h"

namespace kve {

// Rows [first_row, first_row + n_rows), channels [first_channel, first_channel + n_channels), to
// dst [n_rows, n_channels].
KVE_HD void decode_page(const CodedPage& page, const std::byte* data, int first_row, int n_rows,
                        int first_channel, int n_channels, float* dst, int64_t dst_stride) {
  const auto later = [](int a, int b) { return a > b ? a : b; };
  const auto sooner = [](int a, int b) { return a < b ? a : b; };
  const PageOffsets at = page_offsets(page);
  const std::byte* strips = data;
  const int end_row = first_row + n_rows;
  const int end_channel = first_channel + n_channels;
  Tile tile;
  for (int c = 0; c < end_channel; c += kTileLanes) {
    const int from = later(c, first_channel);
    const int to = sooner(c + kTileLanes, end_channel);
    for (int t = first_row / 16 * 16; t < end_row && from < to; t += kTileLanes) {
      read_codes(page, strips, t, c, &tile);
      const bool whole = t >= first_row && t + kTileLanes <= end_row && to - from == kTileLanes;
      const bool plain = is_plain_tile(page, t, c);
      if (plain && whole) {
        float* out = dst + (t - first_row) * dst_stride + (c - first_channel);
        decode_plain_tile(page, at, data, t, c, tile, out, dst_stride);
        continue;
      }
      if (plain) {
        decode_plain_tile(page, at, data, t, c, tile, tile.levels[0], kTileLanes);
      } else {
        decode_any_tile(page, at, data, t, c, &tile);
      }
      for (int r = later(t, first_row); r < sooner(t + kTileLanes, end_row); ++r) {
        std::memcpy(dst + (r - first_row) * dst_stride + (from - first_channel),
                    tile.levels[r - t] + (from - c),
                    static_cast<size_t>(to - from) * sizeof(float));
      }
    }
    for (int s = c / 4; s < c / 4 + 4 && s < n_strips(page); ++s) {
      strips += strip_bytes(bits_of_strip(page, s));
    }
  }
  if (page.outliers == 0) return;
  put_outliers(page, data, first_row, n_rows, first_channel, n_channels, dst, dst_stride);
}

}  // namespace kve
