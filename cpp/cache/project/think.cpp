#include "cache/project/think.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace kve {

std::vector<int> think_channels(ConstMat keys, std::span<const double> query_squares, int n_kept) {
  const auto dim = static_cast<size_t>(keys.cols);
  KVE_ASSERT(query_squares.size() == dim && n_kept >= 1 && n_kept <= static_cast<int>(dim));
  std::vector<double> scores(dim);
  for (int64_t r = 0; r < keys.rows; ++r) {
    const float* row = keys.row(r);
    for (size_t c = 0; c < dim; ++c) scores[c] += double{row[c]} * double{row[c]};
  }
  for (size_t c = 0; c < dim; ++c) scores[c] *= query_squares[c];
  std::vector<int> order(dim);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(n_kept));
  std::ranges::sort(order);
  return order;
}

BasisData think_basis(ConstMat keys, std::span<const double> query_squares, int n_kept) {
  const std::vector<int> channels = think_channels(keys, query_squares, n_kept);
  BasisData out;
  out.dim = out.block = static_cast<int>(keys.cols);
  out.width = out.block_width = n_kept;
  const auto width = static_cast<size_t>(n_kept);
  out.lift.assign(static_cast<size_t>(out.dim) * width, 0);
  for (size_t c = 0; c < width; ++c) out.lift[static_cast<size_t>(channels[c]) * width + c] = 1;
  return out;
}

}  // namespace kve
