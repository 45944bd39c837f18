// Operations on the values of a warp, and on few values packed into words. The mma functions are
// the tensor cores' matrix products, whose fragments are those of PTX (PTX ISA, "Matrix fragments
// for mma.m16n8k16 with floating point type", and for .u8/.s8 of m16n8k32). With g = lane / 4 and
// i = lane % 4 a thread holds
//   of C [16][8]:  c[0], c[1]  row g,     columns 2i, 2i + 1;  c[2], c[3]  the same of row g + 8
//   of A f16 [16][16]: words 0, 2  row g, columns 2i.. and 2i + 8..;  1, 3  the same of row g + 8
//   of B f16 [16][8]:  words 0, 1  rows 2i.. and 2i + 8.. of column g
//   of A s8 [16][32], B s8 [32][8]: the same with four columns (rows) 4i.. and 4i + 16.. to a word
#pragma once

#include "base/half.h"
#include "kernels/cuda/exec.h"

namespace kve::cuda {

constexpr int kWarpThreads = 32;
constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarpThreads; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarpThreads; }

struct Words2 {
  uint32_t x, y;
};
struct Words4 {
  uint32_t x, y, z, w;
};

#ifdef __CUDACC__

__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// sum + the dot product of four int8 values.
__device__ __forceinline__ int dot4(uint32_t a, uint32_t b, int sum) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

__device__ __forceinline__ void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

__device__ __forceinline__ void mma_s8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  // Turing multiplies [8][16] by [16][8].
  KVE_UNROLL
  for (int half = 0; half < 2; ++half) {
    KVE_UNROLL
    for (int k = 0; k < 2; ++k) {
      asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                   : "+r"(c[2 * half]), "+r"(c[2 * half + 1])
                   : "r"(a[2 * k + half]), "r"(k == 0 ? b0 : b1));
    }
  }
#endif
}

// Two binary16 numbers in a word.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  uint32_t word;
  asm("{ .reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h}; }"
      : "=r"(word)
      : "f"(low), "f"(high));
  return word;
}
__device__ __forceinline__ float low_half(uint32_t word) {
  float value;
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(value) : "r"(word));
  return value;
}
__device__ __forceinline__ float high_half(uint32_t word) { return low_half(word >> 16); }
// a * b + c, each rounded once, and a - b of pairs of binary16 numbers.
__device__ __forceinline__ uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t sub_halves(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
// Bytes of the eight of a (0 to 3) and b (4 to 7), the lowest digit of `choice` the lowest byte.
__device__ __forceinline__ uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t choice) {
  return __byte_perm(a, b, choice);
}

#else

inline float shuffle_xor(float value, int mask) {
  const emulation::Shown* all = emulation::exchange({{bits_of_float(value)}});
  return float_from_bits(all[lane_id() ^ mask].words[0]);
}

inline int dot4(uint32_t a, uint32_t b, int sum) {
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<int8_t>(a >> i & 255) * static_cast<int8_t>(b >> i & 255);
  }
  return sum;
}

inline float low_half(uint32_t word) { return half_to_float(static_cast<uint16_t>(word & 0xffff)); }
inline float high_half(uint32_t word) { return low_half(word >> 16); }
inline uint32_t pack_halves(float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}
inline uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  // The product of two numbers of 11 bits is exact in binary32; the sum is rounded there as well,
  // which the device does not do: a difference of at most the last bit.
  return pack_halves(low_half(a) * low_half(b) + low_half(c),
                     high_half(a) * high_half(b) + high_half(c));
}
inline uint32_t sub_halves(uint32_t a, uint32_t b) {
  return pack_halves(low_half(a) - low_half(b), high_half(a) - high_half(b));
}
inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t choice) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(both >> (8 * (choice >> (4 * i) & 7)) & 255) << (8 * i);
  }
  return word;
}

namespace emulation {

// c += A B, with `kPack` values of `Value` to a word.
template <int kPack, class Sum, class Value>
void multiply_fragments(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                        Value value) {
  const Shown* all = exchange({{a[0], a[1], a[2], a[3], b0, b1}});
  const int lane = lane_id();
  KVE_UNROLL
  for (int n = 0; n < 4; ++n) {
    const int row = lane / 4 + n / 2 * 8;
    const int column = lane % 4 * 2 + n % 2;
    for (int i = 0; i < 4; ++i) {
      const Shown& from_a = all[row % 8 * 4 + i];
      const Shown& from_b = all[column * 4 + i];
      for (int w = 0; w < 2; ++w) {
        for (int p = 0; p < kPack; ++p) {
          c[n] += value(from_a.words[2 * w + row / 8], p) * value(from_b.words[4 + w], p);
        }
      }
    }
  }
}

}  // namespace emulation

inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::multiply_fragments<2>(c, a, b0, b1,
                                   [](uint32_t word, int p) { return low_half(word >> (16 * p)); });
}
inline void mma_s8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::multiply_fragments<4>(c, a, b0, b1, [](uint32_t word, int p) {
    return int{static_cast<int8_t>(word >> (8 * p) & 255)};
  });
}

#endif

// Of all threads of the warp.
__device__ __forceinline__ float warp_sum(float value) {
  KVE_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
  KVE_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    const float other = shuffle_xor(value, mask);
    value = value > other ? value : other;
  }
  return value;
}

// Words of memory that is aligned to their size.
__device__ __forceinline__ uint32_t load_word(const void* from) {
  return *static_cast<const uint32_t*>(from);
}
#ifdef __CUDACC__
__device__ __forceinline__ Words2 load_words2(const void* from) {
  const uint2 words = *static_cast<const uint2*>(from);
  return {words.x, words.y};
}
__device__ __forceinline__ Words4 load_words4(const void* from) {
  const uint4 words = *static_cast<const uint4*>(from);
  return {words.x, words.y, words.z, words.w};
}
__device__ __forceinline__ void store_words4(void* to, Words4 words) {
  *static_cast<uint4*>(to) = make_uint4(words.x, words.y, words.z, words.w);
}
#else
inline Words2 load_words2(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 8 != 0) emulation::misaligned();
  return *static_cast<const Words2*>(from);
}
inline Words4 load_words4(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulation::misaligned();
  return *static_cast<const Words4*>(from);
}
inline void store_words4(void* to, Words4 words) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulation::misaligned();
  *static_cast<Words4*>(to) = words;
}
#endif

}  // namespace kve::cuda
