#include "cache/blocks/merge_attention.h"

#include <algorithm>
#include <cmath>

namespace kve {

void merge_attention(ThreadPool& pool, int n_heads, ConstMat other, const float* other_sums,
                     Mat out, float* sums) {
  const int64_t dim = out.cols / n_heads;
  pool.parallel(out.rows, [&](int64_t row) {
    for (int64_t h = 0; h < n_heads; ++h) {
      float& sum = sums[row * n_heads + h];
      const float other_sum = other_sums[row * n_heads + h];
      if (other_sum == -INFINITY) continue;
      // Powers of the differences to the larger one, which cannot overflow.
      const float most = std::max(sum, other_sum);
      const float own = std::exp2(sum - most);
      const float its = std::exp2(other_sum - most);
      const float own_share = own / (own + its);
      const float its_share = its / (own + its);
      float* to = out.row(row) + h * dim;
      const float* from = other.row(row) + h * dim;
      for (int64_t c = 0; c < dim; ++c) to[c] = own_share * to[c] + its_share * from[c];
      sum = most + std::log2(own + its);
    }
  });
}

}  // namespace kve
