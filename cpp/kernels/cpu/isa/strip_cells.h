// Unpacks cells of strips (formats/cache/strips.h) in registers: 64 codes to 64 bytes, lane after
// lane. One variant for each length of vectors.
#pragma once

#include "formats/cache/strips.h"
#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

constexpr int kCellVectors = 16 / kLanes;
constexpr int kNibblePlane = 128;  // bytes of a strip's plane
constexpr int kPairPlane = 64;
constexpr int8_t kTopBit = -128;

using Cell = I32[kCellVectors];

// Codes of 8 bits, as dot4 wants weight codes: code - 128, biased.
static inline void byte_cell(const uint8_t* p, Cell& w) {
#pragma GCC unroll 4
  for (int i = 0; i < kCellVectors; ++i) {
    w[i] = load_i32(p + 4 * kLanes * i);
    if constexpr (kDotBias == 0) w[i] = add_bytes(w[i], set_bytes(kTopBit));
  }
}

#if defined(KVE_ISA_AVX512)

static inline void nibble_cell(const uint8_t* p, Cell& w) {
  const __m512i x = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i counts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  w[0].v = _mm512_and_si512(_mm512_srlv_epi16(x, counts), _mm512_set1_epi8(15));
}
// The pairs at bits kAt and up of the bytes.
template <int kAt>
static inline I32 pair_cell(const uint8_t* p) {
  const __m512i x = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const auto count = [](int n) { return _mm_set1_epi32((n - kAt) & 31); };
  const __m512i counts =
      _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_setr_m128i(count(0), count(2))),
                         _mm256_setr_m128i(count(4), count(6)), 1);
  return {_mm512_and_si512(_mm512_rorv_epi32(x, counts), _mm512_set1_epi8(3 << kAt))};
}
template <int kAt>
static inline void pair_cell(const uint8_t* p, Cell& w) {
  w[0] = pair_cell<kAt>(p);
}
template <int kAt>
static inline void add_pair_cell(const uint8_t* p, Cell& w) {
  w[0] = w[0] | pair_cell<kAt>(p);
}
static inline __mmask64 bit_mask(const uint8_t* p) {
  uint64_t mask;
  __builtin_memcpy(&mask, p, sizeof(mask));
  return _cvtu64_mask64(mask);
}
static inline void bit_cell(const uint8_t* p, Cell& w) {
  w[0].v = _mm512_maskz_mov_epi8(bit_mask(p), _mm512_set1_epi8(1));
}
template <int kAt>
static inline void add_bit_cell(const uint8_t* p, Cell& w) {
  w[0].v = _mm512_mask_add_epi8(w[0].v, bit_mask(p), w[0].v, _mm512_set1_epi8(1 << kAt));
}

#elif defined(KVE_ISA_AVX2)

static inline void nibble_cell(const uint8_t* p, Cell& w) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i mask = _mm256_set1_epi8(15);
  w[0].v = _mm256_and_si256(x, mask);
  w[1].v = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
}
// The pairs at bits kAt (0 or 4) and up of the bytes; lanes of 128 bits are shifted differently.
template <int kAt>
static inline void pair_cell(const uint8_t* p, Cell& w) {
  const __m256i x =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i mask = _mm256_set1_epi8(3 << kAt);
  const auto counts = [](int low, int high) {
    return _mm256_setr_m128i(_mm_set1_epi32(low), _mm_set1_epi32(high));
  };
  if constexpr (kAt == 0) {
    w[0].v = _mm256_and_si256(_mm256_srlv_epi32(x, counts(0, 2)), mask);
    w[1].v = _mm256_and_si256(_mm256_srlv_epi32(x, counts(4, 6)), mask);
  } else {
    w[0].v = _mm256_and_si256(_mm256_sllv_epi32(x, counts(4, 2)), mask);
    w[1].v = _mm256_and_si256(_mm256_srlv_epi32(x, counts(0, 2)), mask);
  }
}
template <int kAt>
static inline void add_pair_cell(const uint8_t* p, Cell& w) {
  Cell pairs;
  pair_cell<kAt>(p, pairs);
  w[0] = w[0] | pairs[0];
  w[1] = w[1] | pairs[1];
}
template <int kAt>
static inline I32 bit_bytes(const uint8_t* p) {
  const __m256i byte_of =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i bits = _mm256_and_si256(_mm256_shuffle_epi8(broadcast_i32(p).v, byte_of), bit_of);
  return {_mm256_and_si256(_mm256_cmpeq_epi8(bits, bit_of), _mm256_set1_epi8(1 << kAt))};
}
static inline void bit_cell(const uint8_t* p, Cell& w) {
  w[0] = bit_bytes<0>(p);
  w[1] = bit_bytes<0>(p + 4);
}
template <int kAt>
static inline void add_bit_cell(const uint8_t* p, Cell& w) {
  w[0] = w[0] | bit_bytes<kAt>(p);
  w[1] = w[1] | bit_bytes<kAt>(p + 4);
}

#else  // vectors of 16 bytes

static_assert(kLanes == 4);

static inline void nibble_cell(const uint8_t* p, Cell& w) {
  const I32 mask = set_bytes(15);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const I32 x = load_i32(p + 16 * i);
    w[i] = x & mask;
    w[2 + i] = shift_right(x, 4) & mask;
  }
}
// The pairs at bits kAt (0 or 4) and up of the bytes.
template <int kAt>
static inline void pair_cell(const uint8_t* p, Cell& w) {
  const I32 x = load_i32(p);
  const I32 mask = set_bytes(3 << kAt);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int right = 2 * i - kAt;
    w[i] = (right >= 0 ? shift_right(x, right) : shift_left(x, -right)) & mask;
  }
}
template <int kAt>
static inline void add_pair_cell(const uint8_t* p, Cell& w) {
  Cell pairs;
  pair_cell<kAt>(p, pairs);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) w[i] = w[i] | pairs[i];
}
// 16 bits as bytes.
template <int kAt>
static inline I32 bit_bytes(const uint8_t* p) {
  uint64_t halves[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    // Every byte keeps its own bit; adding 127 moves any bit of a byte to its top.
    const uint64_t bits = (p[i] * 0x0101010101010101u) & 0x8040201008040201u;
    halves[i] = (((bits + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u) << kAt;
  }
  return load_i32(halves);
}
static inline void bit_cell(const uint8_t* p, Cell& w) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) w[i] = bit_bytes<0>(p + 2 * i);
}
template <int kAt>
static inline void add_bit_cell(const uint8_t* p, Cell& w) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) w[i] = w[i] | bit_bytes<kAt>(p + 2 * i);
}

#endif

// The codes of a cell: of 8 bits as byte_cell says, of fewer as they are.
template <int kBits>
__attribute__((always_inline)) static inline void unpack_cell(const std::byte* strip, int cell,
                                                              Cell& w) {
  static_assert(kBits >= 1 && kBits <= 8);
  const auto* p = reinterpret_cast<const uint8_t*>(strip);
  if constexpr (kBits == 8) {
    byte_cell(p + 64 * cell, w);
  } else {
    if constexpr ((kBits & 4) != 0) nibble_cell(p + 32 * cell, w);
    constexpr int kPairs = (kBits & 4) != 0 ? kNibblePlane : 0;
    constexpr int kBitsPlane = kPairs + ((kBits & 2) != 0 ? kPairPlane : 0);
    if constexpr ((kBits & 6) == 2) pair_cell<0>(p + kPairs + 16 * cell, w);
    if constexpr ((kBits & 6) == 6) add_pair_cell<4>(p + kPairs + 16 * cell, w);
    if constexpr (kBits == 1) bit_cell(p + 8 * cell, w);
    if constexpr (kBits > 1 && (kBits & 1) != 0) {
      add_bit_cell<kBits - 1>(p + kBitsPlane + 8 * cell, w);
    }
  }
}

// Calls `use` with the constants of a number of bits, 1 to 8, and of having a table.
template <class Use>
static auto with_code_bits(int bits, bool table, const Use& use) {
  switch (bits) {
    case 1:
      return table ? use.template operator()<1, true>() : use.template operator()<1, false>();
    case 2:
      return table ? use.template operator()<2, true>() : use.template operator()<2, false>();
    case 3:
      return table ? use.template operator()<3, true>() : use.template operator()<3, false>();
    case 4:
      return table ? use.template operator()<4, true>() : use.template operator()<4, false>();
    case 5:
      return use.template operator()<5, false>();
    case 6:
      return use.template operator()<6, false>();
    case 7:
      return use.template operator()<7, false>();
    default:
      return use.template operator()<8, false>();
  }
}

}  // namespace kve::KVE_ISA
