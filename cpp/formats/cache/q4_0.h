// q4_0: ggml's blocks of 32 values with 4-bit codes around 8 and one binary16 scale, row after row.
// Page: BlockQ4_0 [64, width / 32]; value i is in the low nibble of byte i, value i + 16 in the
// high.
//
// The bytes are those of ggml's reference: d = (signed value of largest magnitude, the first of
// equals) / -8 and code = min(15, trunc(x * (1 / d) + 8.5)), with d before its rounding to
// binary16. Dividing by d instead of multiplying by its rounded inverse gives another code where x
// / d lies within rounding error of k + 0.5.
#pragma once

#include "formats/cache/codec_math.h"
#include "formats/weight/q4_0.h"

namespace kve {

struct Q4_0Codec {};

KVE_HD size_t code_bytes(Q4_0Codec, int rows, int width, int /*group*/) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width / 2);
}
KVE_HD size_t scale_bytes(Q4_0Codec, int rows, int width, int /*group*/) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width / 32) * 2;
}

// Of 32 finite values. Where d exceeds binary16, it saturates and the codes are those nearest to x.
KVE_HD void encode_block(const float* src, BlockQ4_0* block) {
  float largest = 0;
  float signed_largest = src[0];  // gives a zero block the sign that gguf gives it
  for (int i = 0; i < 32; ++i) {
    const float magnitude = magnitude_of(src[i]);
    signed_largest = magnitude > largest ? src[i] : signed_largest;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float limit = half_to_float(kLargestHalf);
  const float d = clamp_to(signed_largest / -8.0f, -limit, limit);
  const uint16_t stored = float_to_half(d);
  const float inverse = inverse_or_zero(d);
  block->d[0] = static_cast<uint8_t>(stored & 0xff);
  block->d[1] = static_cast<uint8_t>(stored >> 8);
  for (int i = 0; i < 16; ++i) {
    // Up to 16.5 when the signs differ, so the upper clamp is part of the format.
    const float low = clamp_to(src[i] * inverse + 8.5f, 0.0f, 15.0f);
    const float high = clamp_to(src[i + 16] * inverse + 8.5f, 0.0f, 15.0f);
    block->qs[i] = static_cast<uint8_t>(static_cast<int>(low) | (static_cast<int>(high) << 4));
  }
}

KVE_HD bool encode_row(Q4_0Codec, const float* src, std::byte* page, int row, int width,
                       int /*group*/) {
  if (!all_finite(src, width)) return false;
  const int blocks = width / 32;
  auto* out = reinterpret_cast<BlockQ4_0*>(page) + static_cast<size_t>(row) * blocks;
  for (int b = 0; b < blocks; ++b) encode_block(src + 32 * b, out + b);
  return true;
}

KVE_HD void decode_row(Q4_0Codec, const std::byte* page, int row, int width, int /*group*/,
                       float* dst) {
  const int blocks = width / 32;
  const auto* in = reinterpret_cast<const BlockQ4_0*>(page) + static_cast<size_t>(row) * blocks;
  for (int b = 0; b < blocks; ++b) {
    const float d = load_half(in[b].d);
    for (int i = 0; i < 16; ++i) {
      dst[32 * b + i] = d * static_cast<float>((in[b].qs[i] & 15) - 8);
      dst[32 * b + i + 16] = d * static_cast<float>((in[b].qs[i] >> 4) - 8);
    }
  }
}

}  // namespace kve
