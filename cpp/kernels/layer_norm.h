// Layer normalisation (arXiv:1607.06450) in terms of what every device offers.
#pragma once

#include "kernels/backend.h"

namespace kve {

// out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias per row; `out` may be x. weight
// [x.cols]; bias [x.cols] or null. Rows do not depend on each other.
void layer_norm(Backend& backend, ConstMat x, const float* weight, const float* bias, float eps,
                Mat out);

}  // namespace kve
