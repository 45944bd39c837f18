// bf16: the upper half of binary32, nearest, ties to even; finite values that would round to
// infinity saturate. Page: uint16 [64, width].
#pragma once

#include "formats/cache/codec_math.h"

namespace kve {

struct Bf16Codec {};

KVE_HD size_t code_bytes(Bf16Codec, int rows, int width, int /*group*/) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width) * 2;
}
KVE_HD size_t scale_bytes(Bf16Codec, int /*rows*/, int /*width*/, int /*group*/) { return 0; }

KVE_HD uint16_t saturate_to_bf16(float value) {
  const uint16_t bits = float_to_bf16(value);
  const uint16_t sign = bits & 0x8000u;
  return (bits & 0x7fffu) == 0x7f80u ? static_cast<uint16_t>(sign | kLargestBf16) : bits;
}

KVE_HD bool encode_row(Bf16Codec codec, const float* src, std::byte* page, int row, int width,
                       int group) {
  std::byte* out = page + code_bytes(codec, row, width, group);
  for (int i = 0; i < width; ++i) write_u16(out + 2 * i, saturate_to_bf16(src[i]));
  return all_finite(src, width);
}

KVE_HD void decode_row(Bf16Codec codec, const std::byte* page, int row, int width, int group,
                       float* dst) {
  const std::byte* in = page + code_bytes(codec, row, width, group);
  for (int i = 0; i < width; ++i) dst[i] = bf16_to_float(read_u16(in + 2 * i));
}

}  // namespace kve
