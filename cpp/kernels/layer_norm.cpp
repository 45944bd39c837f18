// Layer normalisation in terms of what every device offers.

#include <algorithm>
#include <numeric>

#include "kernels/backend.h"

namespace kve {
namespace {

// Few enough for the threads to share a chunk of a prompt; one token is not worth waking them.
constexpr int64_t kRowsPerTask = 16;

void centre(ConstMat x, Mat out, int64_t r) {
  const float* row = x.row(r);
  const double sum = std::accumulate(row, row + x.cols, 0.0);
  const auto mean = static_cast<float>(sum / static_cast<double>(x.cols));
  std::transform(row, row + x.cols, out.row(r), [mean](float value) { return value - mean; });
}

void for_rows(ThreadPool& pool, int64_t rows, const auto& task) {
  const int64_t n_tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
  const auto run = [&](int64_t i) {
    const int64_t end = std::min(rows, (i + 1) * kRowsPerTask);
    for (int64_t r = i * kRowsPerTask; r < end; ++r) task(r);
  };
  if (n_tasks == 1) return run(0);
  pool.parallel(n_tasks, run);
}

}  // namespace

void Backend::layer_norm(ConstMat x, const float* weight, const float* bias, float eps, Mat out) {
  for_rows(pool(), x.rows, [&](int64_t r) { centre(x, out, r); });
  // Of values whose mean is 0, the mean square is the variance.
  rms_norm(out, weight, eps, out);
  if (bias == nullptr) return;
  for_rows(pool(), x.rows, [&](int64_t r) {
    float* row = out.row(r);
    for (int64_t c = 0; c < out.cols; ++c) row[c] += bias[c];
  });
}

}  // namespace kve
