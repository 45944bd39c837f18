// ExpectedAttention (arXiv 2510.00636): the weight that a token will get, if future queries are
// normally distributed with the mean and covariance of those so far, turned to future positions:
// E exp(q k) = exp(mean k + k covariance k / 2). Times the norm of its value.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cache/select/selectors.h"

namespace kve {
namespace {

class Expected : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return keys | values | future; }
  bool is_too_short(int n_tokens) const override { return n_tokens <= spec_.sinks; }

  void score(const LayerPlace& /*place*/, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) score_head(heads[h], out[h]);
  }

 private:
  // The logarithm of the expected weight of a key, but for a constant.
  static double exponent(const HeadRows& rows, int query, const float* key) {
    const int64_t dim = rows.keys.cols;
    double linear = 0;
    double square = 0;
    const float* mean = rows.future_means.row(query);
    for (int64_t i = 0; i < dim; ++i) {
      const float* spread = rows.future_spread.row(query * dim + i);
      // Eight sums, so that the compiler may use vectors.
      float sums[8] = {};
      int64_t j = 0;
      for (; j + 8 <= dim; j += 8) {
        for (int64_t l = 0; l < 8; ++l) sums[l] += spread[j + l] * key[j + l];
      }
      double product = 0;
      for (; j < dim; ++j) product += double{spread[j]} * double{key[j]};
      for (const float sum : sums) product += double{sum};
      linear += double{mean[i]} * double{key[i]};
      square += product * double{key[i]};
    }
    const auto size = static_cast<double>(dim);
    return linear / std::sqrt(size) + square / size / 2;
  }

  void score_head(const HeadRows& rows, std::span<float> out) const {
    const auto n = out.size();
    size_t first = 0;
    while (first < n && rows.positions[first] < spec_.sinks) out[first++] = kAlwaysKept;
    std::vector<double> weights(n);
    std::vector<double> means(n);
    for (int query = 0; query < rows.group; ++query) {
      double most = -HUGE_VAL;
      for (size_t r = first; r < n; ++r) {
        weights[r] = exponent(rows, query, rows.keys.row(static_cast<int64_t>(r)));
        most = std::max(most, weights[r]);
      }
      double sum = 0;
      for (size_t r = first; r < n; ++r) sum += weights[r] = std::exp(weights[r] - most);
      for (size_t r = first; r < n; ++r) means[r] += weights[r] / sum / rows.group;
    }
    for (size_t r = first; r < n; ++r) {
      double squares = 0;
      for (const float value : rows.values.row_span(static_cast<int64_t>(r))) {
        squares += double{value} * double{value};
      }
      out[r] = static_cast<float>((means[r] + spec_.epsilon) * std::sqrt(squares));
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_expected(const SelectorSpec& spec) {
  return std::make_unique<Expected>(spec);
}

}  // namespace kve
