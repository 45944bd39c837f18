// Rows of a cache page as f32, with the vectors of this instruction set. The codecs' headers
// (formats/cache/) are the definition; layouts that do not fill vectors go through them.
#pragma once

#include "formats/cache/bf16.h"
#include "formats/cache/int_group.h"
#include "formats/cache/q4_0.h"
#include "formats/cache/q8_0.h"
#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

static inline void decode_half_row(const uint16_t* src, int width, float* dst) {
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) store(dst + i, load_f16(src + i));
  for (; i < width; ++i) dst[i] = half_to_float(src[i]);
}

static inline void decode_bf16_row(const uint16_t* src, int width, float* dst) {
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) store(dst + i, load_bf16(src + i));
  for (; i < width; ++i) dst[i] = bf16_to_float(src[i]);
}

// n codes (a multiple of kLanes) of one group.
static inline void scale_codes(const uint8_t* codes, int n, F32 scale, F32 min, float* dst) {
  for (int i = 0; i < n; i += kLanes) store(dst + i, fma(load_u8(codes + i), scale, min));
}

#if defined(__AVX2__)
// 16 bytes as floats.
static inline void scale_bytes16(__m128i codes, F32 scale, F32 min, float* dst) {
#if defined(KVE_ISA_AVX512)
  store(dst, fma(to_f32(I32{_mm512_cvtepu8_epi32(codes)}), scale, min));
#else
  store(dst, fma(to_f32(I32{_mm256_cvtepu8_epi32(codes)}), scale, min));
  const __m128i rest = _mm_srli_si128(codes, 8);
  store(dst + 8, fma(to_f32(I32{_mm256_cvtepu8_epi32(rest)}), scale, min));
#endif
}
#endif

// n codes of one group from n / 2 bytes: the low nibble, then the high one.
static inline void scale_nibbles(const uint8_t* packed, int n, F32 scale, F32 min, float* dst) {
#if defined(__AVX2__)
  const __m128i mask = _mm_set1_epi8(15);
  for (; n >= 32; n -= 32, packed += 16, dst += 32) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
    const __m128i low = _mm_and_si128(bytes, mask);
    const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
    scale_bytes16(_mm_unpacklo_epi8(low, high), scale, min, dst);
    scale_bytes16(_mm_unpackhi_epi8(low, high), scale, min, dst + 16);
  }
#endif
  for (; n > 0; n -= kLanes, packed += kLanes / 2, dst += kLanes) {
    uint8_t codes[kLanes];
    for (int i = 0; i < kLanes; ++i) codes[i] = (packed[i / 2] >> (i % 2 * 4)) & 15;
    scale_codes(codes, kLanes, scale, min, dst);
  }
}

template <int kBits>
static inline void decode_int_row(IntGroupCodec<kBits> codec, const std::byte* page, int row,
                                  int width, int group, float* dst) {
  if (group % kLanes != 0) return decode_row(codec, page, row, width, group, dst);
  const auto* codes = reinterpret_cast<const uint8_t*>(page + code_bytes(codec, row, width, group));
  const std::byte* scales = page + scale_offset(codec, row, width, group);
  for (int first = 0; first < width; first += group, scales += 4) {
    const F32 scale = set(one_half(scales));
    const F32 min = set(one_half(scales + 2));
    if constexpr (kBits == 8) {
      scale_codes(codes + first, group, scale, min, dst + first);
    } else {
      scale_nibbles(codes + first / 2, group, scale, min, dst + first);
    }
  }
}

static inline void decode_q8_0_row(const std::byte* page, int row, int width, float* dst) {
  const auto* blocks = reinterpret_cast<const BlockQ8_0*>(page) + int64_t{row} * (width / 32);
  for (int b = 0; b < width / 32; ++b) {
    const F32 scale = set(one_half(blocks[b].d));
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += kLanes) {
      store(dst + 32 * b + i, load_i8(blocks[b].qs + i) * scale);
    }
  }
}

// The low nibbles of 16 bytes, then the high ones.
static inline void split_nibbles(const uint8_t* packed, uint8_t* codes) {
#if defined(__AVX2__)
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm_and_si128(bytes, mask));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16),
                   _mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
#else
  for (int i = 0; i < 16; ++i) {
    codes[i] = packed[i] & 15;
    codes[i + 16] = packed[i] >> 4;
  }
#endif
}

static inline void decode_q4_0_row(const std::byte* page, int row, int width, float* dst) {
  const auto* blocks = reinterpret_cast<const BlockQ4_0*>(page) + int64_t{row} * (width / 32);
  for (int b = 0; b < width / 32; ++b) {
    const F32 scale = set(one_half(blocks[b].d));
    uint8_t codes[32];
    split_nibbles(blocks[b].qs, codes);
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += kLanes) {
      store(dst + 32 * b + i, (load_u8(codes + i) - set(8.0f)) * scale);
    }
  }
}

// Rows [first, first + n) of a page to dst [n, stride].
static inline void decode_page(const CacheCodec& codec, int group, int width, const std::byte* page,
                               int first, int n, float* dst, int64_t stride) {
  const auto each_row = [&](const auto& decode) {
    for (int r = 0; r < n; ++r) decode(first + r, dst + r * stride);
  };
  const auto* halves = reinterpret_cast<const uint16_t*>(page);
  switch (codec.id) {
    case CodecId::f16:
      return each_row(
          [&](int row, float* to) { decode_half_row(halves + int64_t{row} * width, width, to); });
    case CodecId::bf16:
      return each_row(
          [&](int row, float* to) { decode_bf16_row(halves + int64_t{row} * width, width, to); });
    case CodecId::q8_0:
      return each_row([&](int row, float* to) { decode_q8_0_row(page, row, width, to); });
    case CodecId::q4_0:
      return each_row([&](int row, float* to) { decode_q4_0_row(page, row, width, to); });
    case CodecId::int8:
      return each_row(
          [&](int row, float* to) { decode_int_row(Int8Codec{}, page, row, width, group, to); });
    case CodecId::int4:
      return each_row(
          [&](int row, float* to) { decode_int_row(Int4Codec{}, page, row, width, group, to); });
    default:
      return codec.decode(page, first, n, width, group, dst, stride);
  }
}

}  // namespace kve::KVE_ISA
