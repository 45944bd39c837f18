// q8_0: ggml's blocks of 32 values with 8-bit codes and one binary16 scale, row after row. Page:
// BlockQ8_0 [64, width / 32].
//
// The bytes are those of ggml's reference: d = amax / 127 and code = round(x * (1 / d)), halves
// away from zero, both with d before its rounding to binary16. (ggml's own vector code rounds
// halves to even and uses 127 / amax, so its caches can differ from its reference by one code.)
#pragma once

#include "formats/cache/codec_math.h"
#include "formats/weight/q8_0.h"

namespace kve {

struct Q8_0Codec {};

KVE_HD size_t code_bytes(Q8_0Codec, int rows, int width, int /*group*/) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width);
}
KVE_HD size_t scale_bytes(Q8_0Codec, int rows, int width, int /*group*/) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width / 32) * 2;
}

// Of 32 finite values. Where d exceeds binary16, it saturates and the codes are those nearest to x.
KVE_HD void encode_block(const float* src, BlockQ8_0* block) {
  int32_t largest = 0;
  for (int i = 0; i < 32; ++i) {
    const int32_t magnitude = ordered(magnitude_of(src[i]));
    largest = magnitude > largest ? magnitude : largest;
  }
  const float d = clamp_to(from_ordered(largest) / 127.0f, 0.0f, half_to_float(kLargestHalf));
  const float inverse = inverse_or_zero(d);
  const uint16_t stored = float_to_half(d);
  block->d[0] = static_cast<uint8_t>(stored & 0xff);
  block->d[1] = static_cast<uint8_t>(stored >> 8);
  for (int i = 0; i < 32; ++i) {
    const float scaled = clamp_to(src[i] * inverse, -127.0f, 127.0f);
    const float magnitude = magnitude_of(scaled);
    const int whole = static_cast<int>(magnitude);
    // Exact, where adding 0.5 first would round 0.49999997 up.
    const int code = whole + (magnitude - static_cast<float>(whole) >= 0.5f ? 1 : 0);
    block->qs[i] = static_cast<int8_t>(scaled < 0 ? -code : code);
  }
}

KVE_HD bool encode_row(Q8_0Codec, const float* src, std::byte* page, int row, int width,
                       int /*group*/) {
  if (!all_finite(src, width)) return false;
  const int blocks = width / 32;
  auto* out = reinterpret_cast<BlockQ8_0*>(page) + static_cast<size_t>(row) * blocks;
  for (int b = 0; b < blocks; ++b) encode_block(src + 32 * b, out + b);
  return true;
}

KVE_HD void decode_row(Q8_0Codec, const std::byte* page, int row, int width, int /*group*/,
                       float* dst) {
  const int blocks = width / 32;
  const auto* in = reinterpret_cast<const BlockQ8_0*>(page) + static_cast<size_t>(row) * blocks;
  for (int b = 0; b < blocks; ++b) {
    const float d = load_half(in[b].d);
    for (int i = 0; i < 32; ++i) dst[32 * b + i] = d * static_cast<float>(in[b].qs[i]);
  }
}

}  // namespace kve
