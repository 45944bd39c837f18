// f16: IEEE binary16, nearest, ties to even; finite values beyond +-65504 saturate. Page:
// uint16 [64, width]. The uncompressed tail has the same layout, with any number of rows.
#pragma once

#include "formats/cache/codec_math.h"

namespace kve {

struct F16Codec {};

KVE_HD size_t code_bytes(F16Codec, int rows, int width, int /*group*/) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width) * 2;
}
KVE_HD size_t scale_bytes(F16Codec, int /*rows*/, int /*width*/, int /*group*/) { return 0; }

KVE_HD bool encode_row(F16Codec codec, const float* src, std::byte* page, int row, int width,
                       int group) {
  std::byte* out = page + code_bytes(codec, row, width, group);
  for (int i = 0; i < width; ++i) write_u16(out + 2 * i, saturate_to_half(src[i]));
  return all_finite(src, width);
}

KVE_HD void decode_row(F16Codec codec, const std::byte* page, int row, int width, int group,
                       float* dst) {
  const std::byte* in = page + code_bytes(codec, row, width, group);
  for (int i = 0; i < width; ++i) dst[i] = half_to_float(read_u16(in + 2 * i));
}

}  // namespace kve
