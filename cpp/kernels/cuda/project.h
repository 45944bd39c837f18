// Rows of values as coefficients in a basis (kernels/basis_view.h), before they are coded: turned
// back to their anchor, weighted, multiplied by the lift, and once more what that misses of them,
// in binary32 as on the CPU, whose sums are in another order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kve::cuda {

// Of device memory, but for what SealJob says.
struct ProjectJob {
  const float* f32 = nullptr;  // or, where null:
  const uint16_t* f16 = nullptr;
  int64_t stride = 0;
  int32_t n_rows = 0;
  int32_t width = 0;  // values of a row, in blocks
  int32_t block = 0;
  int32_t block_width = 0;
  const uint16_t* lift = nullptr;  // the rest as in BasisView
  const int8_t* lift8 = nullptr;
  const float* lift8_scale = nullptr;
  const float* row = nullptr;
  const float* column = nullptr;
  bool twice = false;
  const float* angles = nullptr;  // of the anchor: cosines, then sines; null: rows are not turned
  int32_t n_pairs = 0;
  bool interleaved = false;
  float* coefficients = nullptr;  // [n_rows, width / block * block_width]
};

// Runs jobs that lie in device memory, of at most most_rows rows and most_block values to a block.
void project(const ProjectJob* jobs, int n_jobs, int most_rows, int most_block);
// Bytes of memory that a block asks for.
size_t project_shared(int most_block);

}  // namespace kve::cuda
