// Rows of a side as attention sees them.
#include <algorithm>
#include <vector>

#include "base/half.h"
#include "cache/anchor.h"
#include "cache/half_rows.h"
#include "cache/side_cache.h"

namespace kve {
namespace {

constexpr float kMaxHalf = 65504;

}  // namespace

void SideCache::decode_page(const SideView& side, const PageView& page, int row,
                            RowPositions positions, Mat out) const {
  memory().fetch(page.data, static_cast<size_t>(page.bytes));
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

void SideCache::fetch_floats() const {
  for (const HalfMemory* rows : {&sinks_, &tail_}) {
    memory().fetch(rows->data(), rows->size() * sizeof(uint16_t));
  }
}

void SideCache::send() const {
  for (const HalfMemory* rows : {&sinks_, &tail_}) {
    memory().send(rows->data(), rows->size() * sizeof(uint16_t));
  }
  for (const PageView& page : pages_.views()) {
    memory().send(page.data, static_cast<size_t>(page.bytes));
  }
  memory().wait();
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
  fetch_floats();
  const SideView side = view(head);
  int row = 0;
  const auto read_floats = [&](const uint16_t* rows, int n) {
    for (int r = 0; r < n; ++r, ++row) {
      const uint16_t* from = rows + static_cast<size_t>(r) * static_cast<size_t>(side.row_stride);
      halves_to_floats(from, out.row(row), side.width);
    }
  };
  read_floats(side.sinks, side.sink_rows);
  for (const PageView& page : side.pages) {
    decode_page(side, page, row, positions, out.block(row, page.rows));
    row += page.rows;
  }
  read_floats(side.tail, side.tail_rows);
}

void SideCache::read_halves(int head, int first, int n, RowPositions positions,
                            uint16_t* out) const {
  const SideView side = view(head);
  const int end = first + n;
  const auto width = static_cast<size_t>(side.width);
  const auto copy = [&](const uint16_t* rows, int64_t stride, int count) {
    for (int r = 0; r < count; ++r, out += width) std::copy_n(rows + r * stride, width, out);
  };
  if (first < side.sink_rows) {
    memory().fetch(sinks_.data(), sinks_.size() * sizeof(uint16_t));
    const int count = std::min(end, side.sink_rows) - first;
    copy(side.sinks + int64_t{first} * side.row_stride, side.row_stride, count);
    first += count;
  }
  const bool plain = side.format.id == CodecId::f16 && side.bases == nullptr;
  std::vector<float> decoded;
  const int first_of_tail = side.sink_rows + pages_.rows();
  while (first < std::min(end, first_of_tail)) {
    const int index = (first - side.sink_rows) / kPageTokens;
    const int row = side.sink_rows + index * kPageTokens;
    PageView page = side.pages[static_cast<size_t>(index)];
    page.rows = static_cast<int16_t>(std::min<int>(page.rows, end - row));
    const int skipped = first - row;
    if (plain) {
      memory().fetch(page.data, static_cast<size_t>(page.bytes));
      const auto* rows = reinterpret_cast<const uint16_t*>(page.data);
      copy(rows + int64_t{skipped} * side.format.width + side.first_channel, side.format.width,
           page.rows - skipped);
    } else {
      decoded.resize(static_cast<size_t>(page.rows) * width);
      decode_page(side, page, row, positions, {decoded.data(), page.rows, side.width});
      for (size_t i = static_cast<size_t>(skipped) * width; i < decoded.size(); ++i) {
        *out++ = float_to_half(std::clamp(decoded[i], -kMaxHalf, kMaxHalf));
      }
    }
    first = row + page.rows;
  }
  if (first >= end) return;
  memory().fetch(tail_.data(), tail_.size() * sizeof(uint16_t));
  copy(side.tail + int64_t{first - first_of_tail} * side.row_stride, side.row_stride, end - first);
}

}  // namespace kve
