// Sides of which only some rows stay.
#include <algorithm>

#include "base/half.h"
#include "cache/anchor.h"
#include "cache/side_cache.h"

namespace kve {

SideCache SideCache::with_rows(std::span<const int32_t> rows, RowPositions positions,
                               bool reassign) const {
  SideCache out(setup_, counter_);
  const ProjectorSpec& projector = setup_.spec.projector;
  if (!projector.is_fixed() && projector.segment == 0) {
    for (const std::shared_ptr<const Basis>& basis : bases_) out.restore_basis(basis);
  }
  fetch_floats();
  const size_t width = values(1);
  const int in_tail = static_cast<int>(rows.size()) - sink_rows();
  std::copy_n(sinks_.data(), sinks_.size(), out.restore_sinks(sink_rows()));
  uint16_t* to = out.restore_tail(in_tail);

  const int first_of_tail = sink_rows() + pages_.rows();
  std::vector<float> page_rows;
  int decoded = -1;  // the page that page_rows holds
  for (const int32_t row : rows.subspan(static_cast<size_t>(sink_rows()))) {
    if (row >= first_of_tail) {
      std::copy_n(tail_.data() + values(row - first_of_tail), width, to);
    } else {
      const int index = (row - sink_rows()) / kPageTokens;
      const int first = sink_rows() + index * kPageTokens;
      const PageView& page = pages_.views()[static_cast<size_t>(index)];
      if (decoded != index) {
        page_rows.resize(values(page.rows));
        const Mat all(page_rows.data(), page.rows, setup_.width());
        for (int head = 0; head < setup_.n_heads; ++head) {
          decode_page(view(head), page, first, positions,
                      all.columns(int64_t{head} * setup_.head_dim, setup_.head_dim));
        }
        decoded = index;
      }
      const float* from = page_rows.data() + values(row - first);
      for (size_t c = 0; c < width; ++c) to[c] = float_to_half(from[c]);
    }
    to += width;
  }
  if (reassign && setup_.rotation != nullptr) out.move_tail(rows, positions);
  out.send();
  return out;
}

// Turns keys of the tail from where they were to positions 0, 1, ...
void SideCache::move_tail(std::span<const int32_t> rows, RowPositions positions) {
  BasisView view;
  view.frequencies = setup_.rotation->frequencies.data();
  view.n_pairs = static_cast<int32_t>(setup_.rotation->frequencies.size());
  view.interleaved = setup_.rotation->interleaved;
  std::vector<float> row(values(1));
  const Mat heads(row.data(), setup_.n_heads, setup_.head_dim);
  uint16_t* at = tail_.data();
  for (size_t i = static_cast<size_t>(sink_rows()); i < rows.size(); ++i, at += row.size()) {
    const int64_t distance = positions.of(rows[i]) - static_cast<int64_t>(i);
    if (distance == 0) continue;
    for (size_t c = 0; c < row.size(); ++c) row[c] = half_to_float(at[c]);
    rotate(heads, view, distance, -1);
    for (size_t c = 0; c < row.size(); ++c) at[c] = float_to_half(row[c]);
  }
}

void SideCache::fit_soon() {
  const int there = (tail_rows() - setup_.spec.tail) / kPageTokens * kPageTokens;
  if (waits_for_fit() && there >= kPageTokens) fit_ = std::min(fit_, there);
}

}  // namespace kve
