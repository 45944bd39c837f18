// What gates become, as functions of vectors: the numbers are those of enum Activation.
#pragma once

#include "simd/math.h"

namespace kve::KVE_ISA {

namespace {

struct ExactSilu {
  F32 operator()(F32 x) const { return silu(x); }
};
struct ExactGeluTanh {
  F32 operator()(F32 x) const { return gelu_tanh(x); }
};
struct GeluErf {
  F32 operator()(F32 x) const { return gelu_erf(x); }
};
struct Relu {
  // max gives its second argument for NaN, which must not vanish.
  F32 operator()(F32 x) const { return max(zero(), x); }
};

}  // namespace

// Calls use(activation).
template <class Silu = ExactSilu, class GeluTanh = ExactGeluTanh, class Use>
static inline void with_activation(int number, const Use& use) {
  switch (number) {
    case 0:
      return use(Silu{});
    case 1:
      return use(GeluTanh{});
    case 2:
      return use(GeluErf{});
    default:
      return use(Relu{});
  }
}

}  // namespace kve::KVE_ISA
