// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). A number is a pure function of (seed, stream, index), in
// integer arithmetic only, so a seed gives the same draws on every machine, compiler and thread.
#pragma once

#include <array>
#include <cstdint>

namespace kve {

// One block of 128 random bits. Test vectors: "philox4x32 10" of Random123's kat_vectors.
constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr uint64_t kMultiplier1 = 0xCD9E8D57u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0];
    const uint64_t product1 = kMultiplier1 * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9u;  // the golden ratio
    key[1] += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

// A sequence of draws; streams of one seed are independent of each other.
class Random {
 public:
  explicit constexpr Random(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  // 64 uniform bits. One Philox block per draw, so that draw `i` needs no history.
  constexpr uint64_t bits() {
    const std::array<uint32_t, 4> block = philox4x32(
        {low(index_), high(index_), low(stream_), high(stream_)}, {low(seed_), high(seed_)});
    ++index_;
    return static_cast<uint64_t>(block[1]) << 32 | block[0];
  }

  // Uniform in [0, 1), a multiple of 2^-53.
  constexpr double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  // How many numbers were drawn.
  constexpr uint64_t index() const { return index_; }

 private:
  static constexpr uint32_t low(uint64_t value) { return static_cast<uint32_t>(value); }
  static constexpr uint32_t high(uint64_t value) { return static_cast<uint32_t>(value >> 32); }

  uint64_t seed_;
  uint64_t stream_;
  uint64_t index_ = 0;
};

}  // namespace kve
