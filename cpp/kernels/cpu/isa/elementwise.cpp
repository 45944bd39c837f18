#include <math.h>

#include "base/half.h"
#include "kernels/cpu/isa/activations.h"
#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// x[i] = f(x[i], y[i]) for n values.
template <class F>
static inline void apply(float* x, const float* y, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, f(load(x + i), load(y + i)));
  if (i < n) store_n(x + i, f(load_n(x + i, n - i), load_n(y + i, n - i)), n - i);
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  F32 squares[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const F32 a = load(x + i);
    const F32 b = load(x + i + kLanes);
    squares[0] = fma(a, a, squares[0]);
    squares[1] = fma(b, b, squares[1]);
  }
  for (; i < n; i += kLanes) {
    const F32 a = load_n(x + i, least(n - i, kLanes));
    squares[0] = fma(a, a, squares[0]);
  }
  const float mean = sum(squares[0] + squares[1]) / static_cast<float>(n);
  const F32 factor = set(1.0f / sqrtf(mean + eps));
  for (i = 0; i + kLanes <= n; i += kLanes) {
    store(out + i, load(x + i) * factor * load(weight + i));
  }
  if (i < n) store_n(out + i, load_n(x + i, n - i) * factor * load_n(weight + i, n - i), n - i);
}

static void rotate_halves(float* x, int64_t half, const float* cos, const float* sin) {
  float* y = x + half;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = least(half - i, kLanes);
    const F32 c = load_n(cos + i, n);
    const F32 s = load_n(sin + i, n);
    const F32 a = load_n(x + i, n);
    const F32 b = load_n(y + i, n);
    store_n(x + i, a * c - b * s, n);
    store_n(y + i, a * s + b * c, n);
  }
}

static void rotate_pairs(float* x, int64_t half, const float* cos, const float* sin) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i];
    const float b = x[2 * i + 1];
    x[2 * i] = a * cos[i] - b * sin[i];
    x[2 * i + 1] = a * sin[i] + b * cos[i];
  }
}

void rope(float* x, int64_t n_heads, int64_t head_dim, int64_t half, bool interleaved,
          const float* cos, const float* sin) {
  for (int64_t h = 0; h < n_heads; ++h) {
    if (interleaved) {
      rotate_pairs(x + h * head_dim, half, cos, sin);
    } else {
      rotate_halves(x + h * head_dim, half, cos, sin);
    }
  }
}

void gated(int activation, float* gate, const float* up, int64_t n) {
  with_activation(activation, [&](auto activate) {
    apply(gate, up, n, [activate](F32 g, F32 u) { return activate(g) * u; });
  });
}

void add(float* x, const float* y, int64_t n) {
  apply(x, y, n, [](F32 a, F32 b) { return a + b; });
}

void scale(float* x, float factor, int64_t n) {
  const F32 f = set(factor);
  apply(x, x, n, [f](F32 a, F32) { return a * f; });
}

void softcap(float cap, float* x, int64_t n) {
  const F32 c = set(cap);
  const F32 inverse = set(1.0f / cap);
  apply(x, x, n, [c, inverse](F32 a, F32) { return c * tanh(a * inverse); });
}

void half_to_f32(const uint16_t* src, float* dst, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load_f16(src + i));
  for (; i < n; ++i) dst[i] = half_to_float(src[i]);
}

}  // namespace kve::KVE_ISA
