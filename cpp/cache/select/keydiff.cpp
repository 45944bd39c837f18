// KeyDiff (arXiv 2504.15364): keys that point elsewhere than the mean direction of all keys.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cache/select/selectors.h"

namespace kve {
namespace {

// Below this a vector has no direction (as in PyTorch's normalize and cosine_similarity).
constexpr double kNoNorm = 1e-12;

double norm(std::span<const float> row) {
  double squares = 0;
  for (const float value : row) squares += double{value} * double{value};
  return std::sqrt(squares);
}

class KeyDiff : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return keys; }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) score_head(heads[h].keys, out[h]);
  }

 private:
  static void score_head(ConstMat rows, std::span<float> out) {
    std::vector<double> mean(static_cast<size_t>(rows.cols));
    std::vector<double> norms(out.size());
    for (int64_t r = 0; r < rows.rows; ++r) {
      const double length = std::max(norm(rows.row_span(r)), kNoNorm);
      norms[static_cast<size_t>(r)] = length;
      for (size_t c = 0; c < mean.size(); ++c) mean[c] += double{rows.row(r)[c]} / length;
    }
    double squares = 0;
    for (const double value : mean) squares += value * value;
    const double length = std::max(std::sqrt(squares), kNoNorm);
    for (int64_t r = 0; r < rows.rows; ++r) {
      double product = 0;
      for (size_t c = 0; c < mean.size(); ++c) product += mean[c] * double{rows.row(r)[c]};
      out[static_cast<size_t>(r)] =
          static_cast<float>(-product / length / norms[static_cast<size_t>(r)]);
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_keydiff(const SelectorSpec& spec) {
  return std::make_unique<KeyDiff>(spec);
}

}  // namespace kve
