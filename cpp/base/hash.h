// A fast 64-bit checksum for our own files. Detects accidents; it is not cryptographic.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace kve {

// Little-endian 8-byte words, each mixed by a multiply and a rotation (the constants are the odd
// 64-bit primes of the xxHash family); the length is part of the result.
inline uint64_t hash64(std::span<const std::byte> bytes, uint64_t seed = 0) {
  constexpr uint64_t kA = 0x9e3779b185ebca87u;
  constexpr uint64_t kB = 0xc2b2ae3d27d4eb4fu;
  uint64_t state = seed ^ (bytes.size() * kA);
  const auto mix = [&state](uint64_t word) {
    state ^= std::rotl(word * kB, 31) * kA;
    state = std::rotl(state, 27) * kA + kB;
  };
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap64(word);
    mix(word);
  }
  uint64_t rest = 0;
  for (size_t shift = 0; i < bytes.size(); ++i, shift += 8) {
    rest |= static_cast<uint64_t>(bytes[i]) << shift;
  }
  mix(rest);
  state ^= state >> 33;
  state *= kB;
  state ^= state >> 29;
  return state;
}

}  // namespace kve
