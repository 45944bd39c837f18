// The bodies of encode_rows and decode_rows (cache_codecs.h): compiled for any processor by
// cache_codecs.cpp and for each instruction set by kernels/, with the same bits.
#pragma once

#include "formats/cache/page_decode.h"
#include "formats/cache/page_encode.h"
#include "formats/cache/plain_floats.h"
#include "formats/cache_codecs.h"

namespace kve {

// Bytes of n values of plain floats.
KVE_HD size_t float_bytes(CodecId id, size_t n) { return n * (id == CodecId::f32 ? 4 : 2); }

KVE_HD bool encode_float_row(CodecId id, const float* from, int n, std::byte* to) {
  if (id == CodecId::f16) return halves_of(from, n, to);
  if (id == CodecId::bf16) return bfloats_of(from, n, to);
  std::memcpy(to, from, float_bytes(id, static_cast<size_t>(n)));
  return all_finite(from, n);
}

KVE_HD void decode_float_row(CodecId id, const std::byte* from, int n, float* to) {
  if (id == CodecId::f16) return read_halves(from, n, to);
  if (id == CodecId::bf16) return read_bfloats(from, n, to);
  std::memcpy(to, from, float_bytes(id, static_cast<size_t>(n)));
}

KVE_HD bool encode_format_rows(const PageFormat& format, const float* src, int64_t src_stride,
                               std::byte* page, int first_row, int n_rows, std::byte* scratch) {
  if (format.id == CodecId::coded) {
    return encode_page(format.coded, src, src_stride, page, first_row, n_rows, scratch);
  }
  const size_t row_bytes = float_bytes(format.id, static_cast<size_t>(format.width));
  std::byte* to = page + row_bytes * static_cast<size_t>(first_row);
  bool finite = true;
  for (int r = 0; r < n_rows; ++r) {
    finite &= encode_float_row(format.id, src + r * src_stride, format.width, to);
    to += row_bytes;
  }
  return finite;
}

KVE_HD void decode_format_rows(const PageFormat& format, const std::byte* page, int first_row,
                               int n_rows, int first_channel, int n_channels, float* dst,
                               int64_t dst_stride) {
  if (format.id == CodecId::coded) {
    return decode_page(format.coded, page, first_row, n_rows, first_channel, n_channels, dst,
                       dst_stride);
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t first = (first_row + r) * format.width + first_channel;
    decode_float_row(format.id, page + float_bytes(format.id, static_cast<size_t>(first)),
                     n_channels, dst + r * dst_stride);
  }
}

}  // namespace kve
