// Between rows of values and rows of coefficients in a basis: what a page is coded from, and what
// it is rebuilt to.
#include <string.h>

#include "kernels/cpu/isa/basis.h"
#include "kernels/cpu/isa/cache_rows.h"

namespace kve::KVE_ISA {

namespace {

struct BasisWork {
  float* coefficients;  // [kAttendTile][width]
  uint16_t* rounded;    // the same in bf16, rows row_stride apart
  int64_t row_stride;
  float* matrix;  // [width][padded]: lift or its transpose, in f32 or pairs of bf16
  size_t size;

  BasisWork(std::byte* data, int width) {
    Carver carver(data);
    row_stride = round_up(width, 2 * kLanes);
    coefficients = carver.take<float>(kAttendTile * round_up(width, kGemmCols));
    rounded = carver.take<uint16_t>(kAttendTile * row_stride);
    matrix = carver.take<float>(round_up(width, kGemmCols) * round_up(width, kGemmCols));
    size = carver.size();
  }
};

}  // namespace

// Rotates pairs (x, y), kStep values between their x, by angles; direction -1 turns them back. A
// loop that compilers vectorise.
template <int kStep>
static void turn_pairs(const float* __restrict angles, int32_t n, float direction,
                       float* __restrict x, float* __restrict y) {
  for (int32_t i = 0; i < n; ++i) {
    const float cos = angles[i];
    const float sin = direction * angles[n + i];
    const float a = x[kStep * i];
    const float b = y[kStep * i];
    x[kStep * i] = a * cos - b * sin;
    y[kStep * i] = a * sin + b * cos;
  }
}
static void turn_row(const BasisView& basis, const float* angles, float direction, float* row) {
  const int32_t n = basis.n_pairs;
  if (basis.interleaved) {
    turn_pairs<2>(angles, n, direction, row, row + 1);
  } else {
    turn_pairs<1>(angles, n, direction, row, row + n);
  }
}

size_t lift_scratch(int width) { return BasisWork(nullptr, width).size; }

// Elements of the transposed lift, [block_width / kPerElement][padded]; element_at(j, e) gives
// those from number e on of row j of the lift.
template <int kPerElement, class ElementAt>
static void transpose_lift(const BasisView& basis, int64_t padded, float* matrix,
                           ElementAt element_at) {
  const int64_t elements = (basis.block_width + kPerElement - 1) / kPerElement;
  for (int64_t e = 0; e < elements; e += kLanes) {
    for (int64_t j = 0; j < basis.block; j += kLanes) {
      F32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = element_at(j + i, e);
      transpose(square);
      const int64_t rows = least(kLanes, elements - e);
      for (int64_t i = 0; i < rows; ++i) store(matrix + (e + i) * padded + j, square[i]);
    }
  }
}

#if defined(KVE_BF16_DOT)
// The product in bf16, where pairs of coefficients do not reach over the end of a block.
static bool lift_rounded(const BasisView& basis, int64_t n, const BasisWork& work,
                         int64_t n_channels, float* dst, int64_t dst_stride) {
  const int64_t n_blocks = basis.dim / basis.block;
  if (n_blocks > 1 && basis.block_width % 2 != 0) return false;
  for (int64_t r = 0; r < n; ++r) {
    uint16_t* to = work.rounded + r * work.row_stride;
    const float* from = work.coefficients + r * n_channels;
    int64_t c = 0;
    for (; c + kLanes <= n_channels; c += kLanes) store_bf16(to + c, load(from + c));
    if (c < n_channels) store_bf16(to + c, load_n(from + c, n_channels - c));
  }
  const int64_t padded = round_up(basis.block, kGemmCols);
  transpose_lift<2>(basis, padded, work.matrix, [&](int64_t row, int64_t pair) {
    uint16_t halves[2 * kLanes];
    store_bf16(halves, lift_numbers(basis, row, 2 * pair));
    store_bf16(halves + kLanes, lift_numbers(basis, row, 2 * pair + kLanes));
    return load(reinterpret_cast<const float*>(halves));
  });
  const auto* elements = reinterpret_cast<const float*>(work.rounded);
  for (int64_t b = 0; b < n_blocks; ++b) {
    gemm_bf16(n, basis.block, (basis.block_width + 1) / 2, elements + b * basis.block_width / 2,
              work.row_stride / 2, work.matrix, padded, dst + b * basis.block, dst_stride, false);
  }
  return true;
}
#endif

// matrix: as BasisWork's.
static void lift(const BasisView& basis, int64_t n, const float* coefficients, int64_t n_channels,
                 float* matrix, float* dst, int64_t dst_stride) {
  const int64_t padded = round_up(basis.block, kGemmCols);
  transpose_lift<1>(basis, padded, matrix,
                    [&](int64_t row, int64_t column) { return lift_numbers(basis, row, column); });
  const int64_t n_blocks = n_channels / basis.block_width;
  for (int64_t b = 0; b < n_blocks; ++b) {
    gemm(n, basis.block, basis.block_width, coefficients + b * basis.block_width, n_channels,
         matrix, padded, dst + b * basis.block, dst_stride, false);
  }
}

void rebuild_rows(const SideArgs& side, const PageView& page, int32_t first, int32_t n,
                  PagePlace place, bool rounded, float* dst, std::byte* scratch) {
  const int32_t tier = page.basis % side.n_tiers;
  PageFormat format = tier == 0 ? side.format : side.older[tier - 1];
  if (side.bases == nullptr) {
    KVE_ISA::decode_rows(format, page.data, first, n, side.first_channel, side.n_channels, dst,
                         side.width);
    return;
  }
  const BasisView& basis = side.bases[page.basis];
  format.coded.strip_bits = basis.strip_bits;
  const BasisWork work(scratch, row_numbers(side));
  if (side.coefficients != nullptr) {
    const PageFormat& beside = *side.coefficients;
    KVE_ISA::decode_rows(format, page.data, first, n, 0, side.n_channels, dst, side.width);
    KVE_ISA::decode_rows(beside, page.data + end_of_page(format), first, n, 0, beside.width,
                         work.coefficients, beside.width);
    lift_values({&basis, work.coefficients, beside.width, n, dst, side.width});
    return;
  }
  KVE_ISA::decode_rows(format, page.data, first, n, side.first_channel, side.n_channels,
                       work.coefficients, side.n_channels);
  bool done = false;
#if defined(KVE_BF16_DOT)
  done = rounded && lift_rounded(basis, n, work, side.n_channels, dst, side.width);
#endif
  (void)rounded;
  if (!done) {
    lift(basis, n, work.coefficients, side.n_channels, work.matrix, dst, side.width);
  }
  if (basis.anchor == 0) return;
  for (int32_t r = 0; r < n; ++r) {
    const int32_t row = basis.anchor == 1 ? place.row + first + r : place.row;
    const float* angles = angles_at(side, basis, {row, place.first_pos});
    turn_row(basis, angles, 1, dst + r * int64_t{side.width});
  }
}

size_t project_scratch(int width) { return BasisWork(nullptr, width).size; }

// coefficients [n][n_blocks * block_width]: the products of rows, already times basis.row, with the
// columns of the lift.
static void project_scaled(const BasisView& basis, int64_t n, int64_t n_blocks, const float* rows,
                           int64_t stride, float* matrix, float* coefficients) {
  const int64_t padded = round_up(basis.block_width, kGemmCols);
  expand_lift(basis, padded, matrix);
  const int64_t out_stride = n_blocks * basis.block_width;
  for (int64_t b = 0; b < n_blocks; ++b) {
    float* out = coefficients + b * basis.block_width;
    gemm(n, basis.block_width, basis.block, rows + b * basis.block, stride, matrix, padded, out,
         out_stride, false);
    if (basis.column == nullptr) continue;
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < basis.block_width; ++c) out[r * out_stride + c] *= basis.column[c];
    }
  }
}

// Rows times basis.row. No remainder of a division for each number: that took longer than the lift.
static void scale_rows(const BasisView& basis, int64_t n, int64_t width, float* rows,
                       int64_t stride) {
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t at = 0; at < width; at += basis.block) {
      float* part = rows + r * stride + at;
      for (int64_t j = 0; j < basis.block; ++j) part[j] *= basis.row[j];
    }
  }
}

// Rows, which are times basis.row, less `lifted` [n][width], which is not.
static void subtract_rows(const BasisView& basis, int64_t n, int64_t width, const float* lifted,
                          float* rows, int64_t stride) {
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t at = 0; at < width; at += basis.block) {
      float* part = rows + r * stride + at;
      const float* from = lifted + r * width + at;
      if (basis.row == nullptr) {
        for (int64_t j = 0; j < basis.block; ++j) part[j] -= from[j];
      } else {
        for (int64_t j = 0; j < basis.block; ++j) part[j] -= basis.row[j] * from[j];
      }
    }
  }
}

void project(const BasisView& basis, int64_t n, int width, float* rows, int64_t stride,
             const float* angles, int64_t angle_stride, float* coefficients, std::byte* scratch) {
  const BasisWork work(scratch, width);
  for (int64_t r = 0; r < n; ++r) {
    if (angles != nullptr) turn_row(basis, angles + r * angle_stride, -1, rows + r * stride);
  }
  if (basis.row != nullptr) scale_rows(basis, n, width, rows, stride);
  const int64_t n_blocks = width / basis.block;
  const int64_t n_coefficients = n_blocks * basis.block_width;
  project_scaled(basis, n, n_blocks, rows, stride, work.matrix, coefficients);
  if (!basis.projected_twice) return;
  float* lifted = work.coefficients;
  lift(basis, n, coefficients, n_coefficients, work.matrix, lifted, width);
  subtract_rows(basis, n, width, lifted, rows, stride);
  float* missed = work.coefficients;
  project_scaled(basis, n, n_blocks, rows, stride, work.matrix, missed);
  add(coefficients, missed, n * n_coefficients);
}

}  // namespace kve::KVE_ISA
