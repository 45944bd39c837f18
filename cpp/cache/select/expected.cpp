// ExpectedAttention (arXiv 2510.00636): the weight that a token will get, if future queries are
// normally distributed with the mean and covariance of those so far, turned to future positions:
// E exp(q k) = exp(mean k + k covariance k / 2). Times the norm of its value.
#include <algorithm>
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
  static constexpr size_t kKeys = 8;

  // Half of key^T spread key + mean key for keys of one head: the logarithms of their expected
  // weights, but for a constant. Eight keys at a time and four rows of the spread, so that a
  // compiler may keep sums in vectors; of a spread, which is symmetric, one half is read.
  class Exponents {
   public:
    // padded: dimension, rounded up to a multiple of 4.
    Exponents(const HeadRows& rows, int query, size_t padded)
        : padded_(padded), mean_(padded), spread_(padded * padded) {
      const auto dim = static_cast<size_t>(rows.keys.cols);
      const auto size = static_cast<float>(dim);
      const auto at = rows.keys.cols * query;
      for (size_t i = 0; i < dim; ++i) {
        mean_[i] = rows.future_means.row(query)[i] / std::sqrt(size);
        const float* row = rows.future_spread.row(at + static_cast<int64_t>(i));
        spread_[i * padded_ + i] = row[i] / size / 2;
        for (size_t j = i + 1; j < dim; ++j) {
          const float other = rows.future_spread.row(at + static_cast<int64_t>(j))[i];
          spread_[i * padded_ + j] = (row[j] + other) / size / 2;
        }
      }
    }

    // keys [padded, kKeys]; out [kKeys].
    void of(const float* keys, float* out) const {
      Floats8 exponents;
      for (size_t i = 0; i < padded_; i += 4) {
        const float* spread = spread_.data() + i * padded_;
        Floats8 first_sum = Floats8::all(mean_[i]);
        Floats8 second_sum = Floats8::all(mean_[i + 1]);
        Floats8 third_sum = Floats8::all(mean_[i + 2]);
        Floats8 fourth_sum = Floats8::all(mean_[i + 3]);
        for (size_t j = i; j < padded_; ++j) {
          Floats8 key;
          key.load(keys + j * kKeys);
          first_sum.add(spread[j], key);
          second_sum.add(spread[padded_ + j], key);
          third_sum.add(spread[2 * padded_ + j], key);
          fourth_sum.add(spread[3 * padded_ + j], key);
        }
        const Floats8* sums[] = {&first_sum, &second_sum, &third_sum, &fourth_sum};
        for (size_t a = 0; a < 4; ++a) {
          Floats8 key;
          key.load(keys + (i + a) * kKeys);
          exponents.add(*sums[a], key);
        }
      }
      exponents.store(out);
    }

   private:
    size_t padded_;
    std::vector<float> mean_;    // [padded], all of these scaled
    std::vector<float> spread_;  // [padded, padded], its lower half added to the upper one
  };

  // Of the rows from `first` on, for each query head: [group][n].
  static std::vector<float> exponents_of(const HeadRows& rows, size_t first) {
    const auto n = static_cast<size_t>(rows.n());
    const auto dim = static_cast<size_t>(rows.keys.cols);
    const auto group = static_cast<size_t>(rows.group);
    const size_t padded = (dim + 3) / 4 * 4;
    std::vector<Exponents> heads;
    for (int query = 0; query < rows.group; ++query) heads.emplace_back(rows, query, padded);
    std::vector<float> out(group * n);
    std::vector<float> keys(padded * kKeys);
    float found[kKeys];
    for (size_t row = first; row < n; row += kKeys) {
      const size_t count = std::min(n - row, kKeys);
      for (size_t r = 0; r < count; ++r) {
        const float* key = rows.keys.row(static_cast<int64_t>(row + r));
        for (size_t i = 0; i < dim; ++i) keys[i * kKeys + r] = key[i];
      }
      for (size_t query = 0; query < group; ++query) {
        heads[query].of(keys.data(), found);
        std::copy_n(found, count, out.begin() + static_cast<std::ptrdiff_t>(query * n + row));
      }
    }
    return out;
  }

  void score_head(const HeadRows& rows, std::span<float> out) const {
    const auto n = out.size();
    size_t first = 0;
    while (first < n && rows.positions[first] < spec_.sinks) out[first++] = kAlwaysKept;
    const std::vector<float> exponents = exponents_of(rows, first);
    std::vector<double> weights(n);
    std::vector<double> means(n);
    for (size_t query = 0; query < static_cast<size_t>(rows.group); ++query) {
      const float* own = exponents.data() + query * n;
      const double most = first < n ? *std::max_element(own + first, own + n) : 0;
      double sum = 0;
      for (size_t r = first; r < n; ++r) sum += weights[r] = std::exp(double{own[r]} - most);
      const double share = 1 / (sum * rows.group);
      for (size_t r = first; r < n; ++r) means[r] += weights[r] * share;
    }
    for (size_t r = first; r < n; ++r) {
      const double size = norm(rows.values.row_span(static_cast<int64_t>(r)));
      out[r] = static_cast<float>((means[r] + spec_.epsilon) * size);
    }
  }

  static double norm(std::span<const float> row) {
    Floats8 sum;
    size_t i = 0;
    for (; i + 8 <= row.size(); i += 8) {
      Floats8 values;
      values.load(row.data() + i);
      sum.add(values, values);
    }
    double squares = double{sum.sum()};
    for (; i < row.size(); ++i) squares += double{row[i]} * double{row[i]};
    return std::sqrt(squares);
  }
};

}  // namespace

std::unique_ptr<Selector> make_expected(const SelectorSpec& spec) {
  return std::make_unique<Expected>(spec);
}

}  // namespace kve
