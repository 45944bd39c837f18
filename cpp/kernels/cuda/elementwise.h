// Operations on rows, as in kernels/backend.h. Matrices are views of device memory.
#pragma once

#include "base/span.h"
#include "base/token.h"
#include "kernels/backend.h"

namespace kve::cuda {

// out = x / rms(x) * weight per row; `out` may be x. weight [x.cols].
void rms_norm(ConstMat x, const float* weight, float eps, Mat out);
// Rotates every head of every row in place. cos, sin: [x.rows, rotary_dim / 2].
void rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin);
// out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias per row; `out` may be x. bias: or
// null.
void layer_norm(ConstMat x, const float* weight, const float* bias, float eps, Mat out);
// gate = activation(gate) * up; without data in `up`: * 1.
void gated(Activation activation, Mat gate, ConstMat up);
// x += y.
void add(Mat x, ConstMat y);
// x = cap * tanh(x / cap).
void softcap(float cap, Mat x);
// Every value to [-limit, limit].
void clamp(float limit, Mat x);

}  // namespace kve::cuda
