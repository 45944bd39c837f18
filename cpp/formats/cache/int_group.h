// int8 and int4: asymmetric integers with a scale and a minimum per `group` consecutive channels of
// a row (FlexGen's scheme, arXiv 2303.06865, along the head dimension).
//
// A value is scale * code + minimum. scale = (max - min) / (2^bits - 1); both are stored in
// binary16 (ties to even, saturating at +-65504) and the codes, rounded half to even, are computed
// from the stored ones. A scale of zero (a constant group) gives code 0 everywhere: the minimum as
// stored. Page: codes [64, width * bits / 8], then {binary16 scale, binary16 minimum} [64, width /
// group]. int4 packs values 2i and 2i + 1 into the low and high nibble of byte i.
#pragma once

#include "formats/cache/codec_math.h"

namespace kve {

template <int kBits>
struct IntGroupCodec {
  static_assert(kBits == 8 || kBits == 4);
};
using Int8Codec = IntGroupCodec<8>;
using Int4Codec = IntGroupCodec<4>;

constexpr int kLargestGroup = 128;

template <int kBits>
KVE_HD size_t code_bytes(IntGroupCodec<kBits>, int rows, int width, int /*group*/) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width) * kBits / 8;
}
template <int kBits>
KVE_HD size_t scale_bytes(IntGroupCodec<kBits>, int rows, int width, int group) {
  return static_cast<size_t>(rows) * static_cast<size_t>(width / group) * 4;
}

// Where row `row` keeps its {scale, minimum} pairs.
template <int kBits>
KVE_HD size_t scale_offset(IntGroupCodec<kBits> codec, int row, int width, int group) {
  return code_bytes(codec, kPageTokens, width, group) + scale_bytes(codec, row, width, group);
}

// Codes of n <= kLargestGroup finite values, and their scale and minimum as stored (4 bytes).
template <int kBits>
KVE_HD void encode_group(IntGroupCodec<kBits>, const float* src, int n, uint8_t* codes,
                         std::byte* scale_and_min) {
  constexpr float kTop = static_cast<float>((1 << kBits) - 1);
  int32_t least = ordered(src[0]);
  int32_t most = least;
  for (int i = 1; i < n; ++i) {
    const int32_t order = ordered(src[i]);
    least = order < least ? order : least;
    most = order > most ? order : most;
  }
  const float low = from_ordered(least);
  const float high = from_ordered(most);
  const uint16_t stored_scale = saturate_to_half((high - low) / kTop);
  const uint16_t stored_min = saturate_to_half(low);
  write_u16(scale_and_min, stored_scale);
  write_u16(scale_and_min + 2, stored_min);
  const float scale = half_to_float(stored_scale);
  const float min = half_to_float(stored_min);
  if (scale == 0.0f) {
    for (int i = 0; i < n; ++i) codes[i] = 0;
    return;
  }
  for (int i = 0; i < n; ++i) {
    const float code = round_half_even(clamp_to((src[i] - min) / scale, 0.0f, kTop));
    codes[i] = static_cast<uint8_t>(static_cast<int>(code));
  }
}

template <int kBits>
KVE_HD bool encode_row(IntGroupCodec<kBits> codec, const float* src, std::byte* page, int row,
                       int width, int group) {
  if (!all_finite(src, width)) return false;
  std::byte* out = page + code_bytes(codec, row, width, group);
  std::byte* scales = page + scale_offset(codec, row, width, group);
  uint8_t codes[kLargestGroup] = {};
  for (int first = 0; first < width; first += group) {
    encode_group(codec, src + first, group, codes, scales);
    scales += 4;
    if constexpr (kBits == 8) {
      std::memcpy(out, codes, static_cast<size_t>(group));
      out += group;
    } else {
      for (int i = 0; i < group; i += 2) {
        *out++ = static_cast<std::byte>(codes[i] | (codes[i + 1] << 4));
      }
    }
  }
  return true;
}

// scale * code is exact in binary32 (11 + 8 bits), so contraction cannot change the sum.
template <int kBits>
KVE_HD void decode_row(IntGroupCodec<kBits> codec, const std::byte* page, int row, int width,
                       int group, float* dst) {
  const std::byte* in = page + code_bytes(codec, row, width, group);
  const std::byte* scales = page + scale_offset(codec, row, width, group);
  for (int first = 0; first < width; first += group) {
    const float scale = half_to_float(read_u16(scales));
    const float min = half_to_float(read_u16(scales + 2));
    scales += 4;
    float* out = dst + first;
    if constexpr (kBits == 8) {
      for (int i = 0; i < group; ++i) {
        out[i] = scale * static_cast<float>(static_cast<int>(in[first + i])) + min;
      }
    } else {
      for (int i = 0; i < group; i += 2) {
        const int pair = static_cast<int>(in[(first + i) / 2]);
        out[i] = scale * static_cast<float>(pair & 15) + min;
        out[i + 1] = scale * static_cast<float>(pair >> 4) + min;
      }
    }
  }
}

}  // namespace kve
