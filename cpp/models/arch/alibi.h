// Attention with linear biases (arXiv:2108.12409).
#pragma once

#include <vector>

namespace kve {

// What a head's scores lose for every token of distance, [n_heads]: a geometric sequence that ends
// with 2^-max_bias, for the largest power of two of heads; further heads get every second member of
// the sequence for twice as many.
std::vector<float> alibi_slopes(int n_heads, double max_bias);

}  // namespace kve
