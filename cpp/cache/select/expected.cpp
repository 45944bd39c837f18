// ExpectedAttention (arXiv 2510.00636): the weight that a token will get, if future queries are
// normally distributed with the mean and covariance of those so far, turned to future positions:
// E exp(q k) = exp(mean k + k covariance k / 2). Times the norm of its value.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <vector>

#include "cache/select/floats8.h"
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
  // Half of key^T spread key + mean key for keys of one head: the logarithms of their expected
  // weights, but for a constant. Eight keys at a time and four rows of the spread, so that a
  // compiler may keep sums in vectors; of a spread, which is symmetric, one half is read.
  class Exponents {
   public:
    static constexpr size_t kKeys = 8;

    Exponents(const HeadRows& rows, int query)
        : rows_(rows),
          dim_(static_cast<size_t>(rows.keys.cols)),
          padded_((dim_ + 3) / 4 * 4),
          mean_(padded_),
          spread_(padded_ * padded_),
          keys_(padded_ * kKeys) {
      const auto size = static_cast<float>(dim_);
      const auto at = static_cast<int64_t>(dim_) * query;
      for (size_t i = 0; i < dim_; ++i) {
        mean_[i] = rows.future_means.row(query)[i] / std::sqrt(size);
        const float* row = rows.future_spread.row(at + static_cast<int64_t>(i));
        spread_[i * padded_ + i] = row[i] / size / 2;
        for (size_t j = i + 1; j < dim_; ++j) {
          const float other = rows.future_spread.row(at + static_cast<int64_t>(j))[i];
          spread_[i * padded_ + j] = (row[j] + other) / size / 2;
        }
      }
    }

    // Of the keys of rows [first, first + n), n at most kKeys.
    std::array<double, kKeys> of(size_t first, size_t n) {
      for (size_t r = 0; r < n; ++r) {
        const float* key = rows_.keys.row(static_cast<int64_t>(first + r));
        for (size_t i = 0; i < dim_; ++i) keys_[i * kKeys + r] = key[i];
      }
      std::array<double, kKeys> out{};
      for (size_t i = 0; i < padded_; i += 4) {
        const float* spread[4];
        for (size_t a = 0; a < 4; ++a) spread[a] = spread_.data() + (i + a) * padded_;
        Floats8 first_sum{};
        Floats8 second_sum{};
        Floats8 third_sum{};
        Floats8 fourth_sum{};
        for (size_t j = i; j < padded_; ++j) {
          Floats8 key;
          load(keys_.data() + j * kKeys, &key);
          first_sum += spread[0][j] * key;
          second_sum += spread[1][j] * key;
          third_sum += spread[2][j] * key;
          fourth_sum += spread[3][j] * key;
        }
        float sums[4][kKeys];
        store(first_sum, sums[0]);
        store(second_sum, sums[1]);
        store(third_sum, sums[2]);
        store(fourth_sum, sums[3]);
        for (size_t a = 0; a < 4; ++a) {
          const float* key = keys_.data() + (i + a) * kKeys;
          for (size_t r = 0; r < kKeys; ++r) {
            out[r] += (double{mean_[i + a]} + double{sums[a][r]}) * double{key[r]};
          }
        }
      }
      return out;
    }

   private:
    const HeadRows& rows_;
    size_t dim_;
    size_t padded_;              // zeros fill what is added to a multiple of 4
    std::vector<float> mean_;    // [padded], all of these scaled
    std::vector<float> spread_;  // [padded, padded], its lower half added to the upper one
    std::vector<float> keys_;    // [padded, kKeys]
  };

  void score_head(const HeadRows& rows, std::span<float> out) const {
    const auto n = out.size();
    size_t first = 0;
    while (first < n && rows.positions[first] < spec_.sinks) out[first++] = kAlwaysKept;
    std::vector<double> weights(n);
    std::vector<double> means(n);
    for (int query = 0; query < rows.group; ++query) {
      double most = -HUGE_VAL;
      Exponents exponents(rows, query);
      for (size_t r = first; r < n; r += Exponents::kKeys) {
        const size_t count = std::min(n - r, Exponents::kKeys);
        const auto found = exponents.of(r, count);
        std::copy_n(found.begin(), count, weights.begin() + static_cast<std::ptrdiff_t>(r));
        most = std::max(most, *std::max_element(found.begin(), found.begin() + count));
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
