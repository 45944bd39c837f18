// Rows of floats as operands of the tensor cores, in the order of fragments.h.
#pragma once

#include "kernels/cuda/fragments.h"

namespace kve::cuda {

// Four consecutive values of a row of floats as binary16 numbers.
__device__ __forceinline__ Words2 read_four(const std::byte* row, int channel, FloatKind floats) {
  if (floats == FloatKind::f32) {
    const Words4 words = load_words4(row + 4 * channel);
    return {pack_halves(float_from_bits(words.x), float_from_bits(words.y)),
            pack_halves(float_from_bits(words.z), float_from_bits(words.w))};
  }
  const Words2 words = load_words2(row + 2 * channel);
  if (floats == FloatKind::f16) return words;
  return {pack_halves(bf16_to_float(static_cast<uint16_t>(words.x & 0xffffu)),
                      bf16_to_float(static_cast<uint16_t>(words.x >> 16))),
          pack_halves(bf16_to_float(static_cast<uint16_t>(words.y & 0xffffu)),
                      bf16_to_float(static_cast<uint16_t>(words.y >> 16)))};
}

// Rows of floats of a tile of 64 tokens: token t of those in [first, end) is at data + t * stride.
struct FloatRows {
  const std::byte* data;
  int64_t stride;  // bytes
  int first;
  int end;
  FloatKind floats;
};

__device__ __forceinline__ Words2 read_four(const FloatRows& rows, int token, int channel) {
  if (token < rows.first || token >= rows.end) return {0, 0};
  return read_four(rows.data + token * rows.stride, channel, rows.floats);
}

__device__ __forceinline__ void key_fragments(const FloatRows& rows, const FragmentPlace& place,
                                              Fragments* out) {
  KVE_UNROLL
  for (int k = 0; k < 4; ++k) {
    const Words2 first = read_four(rows, place.lane + k, place.step);
    const Words2 second = read_four(rows, place.lane + k + 8, place.step);
    uint32_t* a = (*out)[k];
    a[0] = low_pair(first.x, first.y);
    a[1] = low_pair(second.x, second.y);
    a[2] = high_pair(first.x, first.y);
    a[3] = high_pair(second.x, second.y);
  }
}

__device__ __forceinline__ void value_fragments(const FloatRows& rows, const FragmentPlace& place,
                                                Fragments* out) {
  Words2 first[4];
  Words2 second[4];
  KVE_UNROLL
  for (int n = 0; n < 4; ++n) {
    first[n] = read_four(rows, place.step + n, place.lane);
    second[n] = read_four(rows, place.step + n, place.lane + 8);
  }
  KVE_UNROLL
  for (int n = 0; n < 2; ++n) {  // steps 0, 2 and 1, 3
    (*out)[0][2 * n] = low_pair(first[n].x, first[n + 2].x);
    (*out)[1][2 * n] = high_pair(first[n].x, first[n + 2].x);
    (*out)[2][2 * n] = low_pair(first[n].y, first[n + 2].y);
    (*out)[3][2 * n] = high_pair(first[n].y, first[n + 2].y);
    (*out)[0][2 * n + 1] = low_pair(second[n].x, second[n + 2].x);
    (*out)[1][2 * n + 1] = high_pair(second[n].x, second[n + 2].x);
    (*out)[2][2 * n + 1] = low_pair(second[n].y, second[n + 2].y);
    (*out)[3][2 * n + 1] = high_pair(second[n].y, second[n + 2].y);
  }
}

}  // namespace kve::cuda
