// Encoders with one scale per block of 32 values, and of plain numbers.
#include <cmath>
#include <cstring>

#include "formats/weight/encoders.h"
#include "formats/weight/q4_0.h"
#include "formats/weight/q4_1.h"
#include "formats/weight/q5_0.h"
#include "formats/weight/q5_1.h"
#include "formats/weight/q8_0.h"

namespace kve {

namespace {

constexpr int kBlock = 32;

// Zero for the scale of a block that is all zero, or so small that its inverse overflows: such a
// scale is zero in binary16 too.
float inverse(float scale) {
  const float result = 1.0f / scale;
  return std::isfinite(result) ? result : 0.0f;
}

// Rounds towards zero; NaN becomes 0.
int truncate_code(float value, int max) {
  if (!(value > 0.0f)) return 0;
  return value < static_cast<float>(max) ? static_cast<int>(value) : max;
}

// The value of largest magnitude, with its sign; the first one if several.
float extreme(const float* x) {
  float best = x[0];
  for (int i = 1; i < kBlock; ++i) {
    if (std::fabs(x[i]) > std::fabs(best)) best = x[i];
  }
  return best;
}

struct Range {
  float min, max;
};
Range range(const float* x) {
  Range r{x[0], x[0]};
  for (int i = 1; i < kBlock; ++i) {
    if (x[i] < r.min) r.min = x[i];
    if (x[i] > r.max) r.max = x[i];
  }
  return r;
}

// Codes 0..2*zero-1 around `zero`; the extreme value becomes code 0. Returns the scale.
float symmetric_codes(const float* x, int zero, int* codes) {
  const float scale = extreme(x) / static_cast<float>(-zero);
  const float inv = inverse(scale);
  for (int i = 0; i < kBlock; ++i) {
    const float scaled = x[i] * inv;
    codes[i] = truncate_code(scaled + (static_cast<float>(zero) + 0.5f), 2 * zero - 1);
  }
  return scale;
}

struct ScaleMin {
  float scale, min;
};
// Codes 0..max_code, of which the smallest value gets 0 and the largest max_code.
ScaleMin affine_codes(const float* x, int max_code, int* codes) {
  const Range r = range(x);
  const float scale = (r.max - r.min) / static_cast<float>(max_code);
  const float inv = inverse(scale);
  for (int i = 0; i < kBlock; ++i) {
    const float scaled = (x[i] - r.min) * inv;
    codes[i] = truncate_code(scaled + 0.5f, max_code);
  }
  return {scale, r.min};
}

void store_nibbles(const int* codes, uint8_t* qs) {
  for (int i = 0; i < 16; ++i) {
    qs[i] = static_cast<uint8_t>((codes[i] & 15) | ((codes[i + 16] & 15) << 4));
  }
}

void store_fifth_bits(const int* codes, uint8_t* qh) {
  for (int byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (int i = 0; i < 8; ++i) bits |= (codes[8 * byte + i] >> 4) << i;
    qh[byte] = static_cast<uint8_t>(bits);
  }
}

void encode_block(const float* x, BlockQ8_0* block) {
  const float scale = std::fabs(extreme(x)) / 127.0f;
  const float inv = inverse(scale);
  for (int i = 0; i < kBlock; ++i) {
    const float scaled = x[i] * inv;  // at most a rounding error beyond 127; NaN if x is not finite
    block->qs[i] = std::isfinite(scaled) ? static_cast<int8_t>(std::round(scaled)) : int8_t{0};
  }
  store_half(scale, block->d);
}

void encode_block(const float* x, BlockQ4_0* block) {
  int codes[kBlock];
  store_half(symmetric_codes(x, 8, codes), block->d);
  store_nibbles(codes, block->qs);
}

void encode_block(const float* x, BlockQ5_0* block) {
  int codes[kBlock];
  store_half(symmetric_codes(x, 16, codes), block->d);
  store_nibbles(codes, block->qs);
  store_fifth_bits(codes, block->qh);
}

void encode_block(const float* x, BlockQ4_1* block) {
  int codes[kBlock];
  const ScaleMin found = affine_codes(x, 15, codes);
  store_half(found.scale, block->d);
  store_half(found.min, block->m);
  store_nibbles(codes, block->qs);
}

void encode_block(const float* x, BlockQ5_1* block) {
  int codes[kBlock];
  const ScaleMin found = affine_codes(x, 31, codes);
  store_half(found.scale, block->d);
  store_half(found.min, block->m);
  store_nibbles(codes, block->qs);
  store_fifth_bits(codes, block->qh);
}

template <class Block>
void encode_blocks(const float* src, std::byte* dst, int64_t n) {
  for (int64_t i = 0; i < n / kBlock; ++i) {
    Block block;
    encode_block(src + i * kBlock, &block);
    std::memcpy(dst + i * static_cast<int64_t>(sizeof(Block)), &block, sizeof(Block));
  }
}

}  // namespace

void encode_f32(const float* src, std::byte* dst, int64_t n) {
  if (n > 0) std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
}
void encode_f16(const float* src, std::byte* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = float_to_half(src[i]);
    std::memcpy(dst + 2 * i, &bits, 2);
  }
}
void encode_bf16(const float* src, std::byte* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = float_to_bf16(src[i]);
    std::memcpy(dst + 2 * i, &bits, 2);
  }
}
void encode_q8_0(const float* src, std::byte* dst, int64_t n) {
  encode_blocks<BlockQ8_0>(src, dst, n);
}
void encode_q4_0(const float* src, std::byte* dst, int64_t n) {
  encode_blocks<BlockQ4_0>(src, dst, n);
}
void encode_q4_1(const float* src, std::byte* dst, int64_t n) {
  encode_blocks<BlockQ4_1>(src, dst, n);
}
void encode_q5_0(const float* src, std::byte* dst, int64_t n) {
  encode_blocks<BlockQ5_0>(src, dst, n);
}
void encode_q5_1(const float* src, std::byte* dst, int64_t n) {
  encode_blocks<BlockQ5_1>(src, dst, n);
}

}  // namespace kve
