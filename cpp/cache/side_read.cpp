// Rows of a side as attention sees them.
#include <vector>

#include "base/half.h"
#include "cache/anchor.h"
#include "cache/side_cache.h"

namespace kve {

void SideCache::decode_page(const SideView& side, const PageView& page, int row,
                            RowPositions positions, Mat out) const {
  const PageFormat layout = format(page.basis);
  if (side.bases == nullptr) {
    return decode_rows(layout, page.data, 0, page.rows, side.first_channel, side.n_channels,
                       out.data, out.stride);
  }
  const BasisView& basis = side.bases[page.basis];
  const bool beside = coefficients_.width > 0;
  const int n = beside ? coefficients_.width : side.n_channels;
  std::vector<float> coefficients(static_cast<size_t>(page.rows * n));
  decode_rows(beside ? coefficients_ : layout, page.data + (beside ? end_of_page(layout) : 0), 0,
              page.rows, beside ? 0 : side.first_channel, n, coefficients.data(), n);
  lift_rows(basis, {coefficients.data(), page.rows, n}, out);
  if (beside) add_codes(layout, page, out);
  if (basis.anchor == 1) {
    for (int r = 0; r < page.rows; ++r) rotate(out.block(r, 1), basis, positions.of(row + r), 1);
  } else if (basis.anchor > 1) {
    rotate(out, basis, positions.anchor(row, basis.anchor, setup_.sinks), 1);
  }
}

// What codes leave or correct, in a row's own channels.
void SideCache::add_codes(const PageFormat& layout, const PageView& page, Mat out) {
  std::vector<float> codes(static_cast<size_t>(page.rows * layout.width));
  decode_rows(layout, page.data, 0, page.rows, 0, layout.width, codes.data(), layout.width);
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.cols; ++c) {
      out.row(r)[c] += codes[static_cast<size_t>(r * out.cols + c)];
    }
  }
}

void SideCache::decode(int head, RowPositions positions, Mat out) const {
  const SideView side = view(head);
  int row = 0;
  const auto read_floats = [&](const uint16_t* rows, int n) {
    for (int r = 0; r < n; ++r, ++row) {
      const uint16_t* from = rows + static_cast<size_t>(r) * static_cast<size_t>(side.row_stride);
      for (int c = 0; c < side.width; ++c) out.row(row)[c] = half_to_float(from[c]);
    }
  };
  read_floats(side.sinks, side.sink_rows);
  for (const PageView& page : side.pages) {
    decode_page(side, page, row, positions, out.block(row, page.rows));
    row += page.rows;
  }
  read_floats(side.tail, side.tail_rows);
}

}  // namespace kve
