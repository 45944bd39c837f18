// f32: values as they are. Page: float [64, width].
#pragma once

#include "formats/cache/codec_math.h"

namespace kve {

struct F32Codec {};

KVE_HD size_t code_bytes(F32Codec, int rows, int width, int /*group*/) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width) * 4;
}
KVE_HD size_t scale_bytes(F32Codec, int /*rows*/, int /*width*/, int /*group*/) { return 0; }

KVE_HD bool encode_row(F32Codec codec, const float* src, std::byte* page, int row, int width,
                       int group) {
  std::memcpy(page + code_bytes(codec, row, width, group), src, static_cast<size_t>(width) * 4);
  return all_finite(src, width);
}

KVE_HD void decode_row(F32Codec codec, const std::byte* page, int row, int width, int group,
                       float* dst) {
  std::memcpy(dst, page + code_bytes(codec, row, width, group), static_cast<size_t>(width) * 4);
}

}  // namespace kve
