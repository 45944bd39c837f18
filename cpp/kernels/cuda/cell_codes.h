// Codes of a cell of a strip (formats/cache/strips.h), and their levels, as a thread takes them for
// fragments (fragments.h).
#pragma once

#include "kernels/cuda/warp.h"

namespace kve::cuda {

// Bytes 0, 2 and 1, 3 of a word become pairs of numbers 1024 + byte.
constexpr uint32_t kMagicHalves = 0x64006400u;

// Codes, one to a byte, of four steps of lanes 4h + k and 4h + k + 8.
struct CellCodes {
  uint32_t first[4];
  uint32_t second[4];
};

// `bits` is the same for all threads; inlined for a constant it leaves one of the planes.
__device__ __forceinline__ CellCodes read_cell(const std::byte* strip, int bits, int cell,
                                               int half) {
  if (bits == 8) {
    const Words4 a = load_words4(strip + cell * 64 + half * 16);
    const Words4 b = load_words4(strip + cell * 64 + half * 16 + 32);
    return {{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}};
  }
  CellCodes codes{};
  if ((bits & 4) != 0) {
    const Words4 words = load_words4(strip + cell * 32 + half * 16);
    const uint32_t nibbles[4] = {words.x, words.y, words.z, words.w};
    KVE_UNROLL
    for (int k = 0; k < 4; ++k) {
      codes.first[k] = nibbles[k] & 0x0f0f0f0fu;
      codes.second[k] = nibbles[k] >> 4 & 0x0f0f0f0fu;
    }
  }
  const std::byte* pair_plane = strip + (bits & 4) * 32;
  if ((bits & 2) != 0) {
    const Words4 words = load_words4(pair_plane + cell * 16);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    KVE_UNROLL
    for (int k = 0; k < 4; ++k) {
      codes.first[k] |= (pairs[k] >> (2 * half) & 0x03030303u) << (bits & 4);
      codes.second[k] |= (pairs[k] >> (2 * half + 4) & 0x03030303u) << (bits & 4);
    }
  }
  if ((bits & 1) != 0) {
    const Words2 words = load_words2(pair_plane + (bits & 2) * 32 + cell * 8);
    // Bit n of four bits to byte n.
    KVE_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int at = 16 * half + 4 * k;
      codes.first[k] |= ((words.x >> at & 15u) * 0x00204081u & 0x01010101u) << (bits & 6);
      codes.second[k] |= ((words.y >> at & 15u) * 0x00204081u & 0x01010101u) << (bits & 6);
    }
  }
  return codes;
}

// Levels of four codes, of steps 0, 2 and 1, 3. `table`: of 256 binary16 levels, where the coding
// has no line of them.
struct LevelPairs {
  uint32_t even;
  uint32_t odd;
};
__device__ __forceinline__ LevelPairs find_levels(uint32_t codes, uint32_t zero_level,
                                                  const uint16_t* table) {
  const uint32_t even = codes & 0x00ff00ffu;
  const uint32_t odd = codes >> 8 & 0x00ff00ffu;
  if (table == nullptr) {
    return {sub_halves(even | kMagicHalves, zero_level),
            sub_halves(odd | kMagicHalves, zero_level)};
  }
  return {table[even & 255u] | static_cast<uint32_t>(table[even >> 16]) << 16,
          table[odd & 255u] | static_cast<uint32_t>(table[odd >> 16]) << 16};
}

}  // namespace kve::cuda
