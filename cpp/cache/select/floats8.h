// Eight floats side by side, so that sums stay in registers however a compiler would unroll loops
// over them. Two vectors of four, which every processor has: one of eight is kept in memory where
// registers are smaller.
#pragma once

#include <cstring>

namespace kve {

struct Floats8 {
  using Four = float __attribute__((vector_size(16)));
  Four low{};
  Four high{};

  static Floats8 all(float value) { return {Four{} + value, Four{} + value}; }
  void load(const float* from) {
    std::memcpy(&low, from, sizeof(low));
    std::memcpy(&high, from + 4, sizeof(high));
  }
  void store(float* to) const {
    std::memcpy(to, &low, sizeof(low));
    std::memcpy(to + 4, &high, sizeof(high));
  }
  // this += factor * other
  void add(float factor, const Floats8& other) {
    low += factor * other.low;
    high += factor * other.high;
  }
  void add(const Floats8& factor, const Floats8& other) {
    low += factor.low * other.low;
    high += factor.high * other.high;
  }
  float sum() const {
    const Four both = low + high;
    return (both[0] + both[1]) + (both[2] + both[3]);
  }
};

}  // namespace kve
