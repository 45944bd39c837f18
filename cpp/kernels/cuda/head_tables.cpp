#include "kernels/cuda/head_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kve::cuda {
namespace {

constexpr size_t kAlignment = 16;  // of the parts of what is sent

int32_t rows_in_pages(const SideView& side) {
  if (side.pages.empty()) return 0;
  return static_cast<int32_t>(side.pages.size() - 1) * kPageTokens + side.pages.back().rows;
}

int32_t row_of(const HeadView& head, int32_t position) {
  if (head.positions == nullptr) return position - head.first_pos;
  const int32_t* end = head.positions + head.n_rows;
  return static_cast<int32_t>(std::lower_bound(head.positions, end, position) - head.positions);
}

// Later pages never have an earlier basis, but any of its tiers.
int last_basis(const SideView& side) { return side.pages.back().basis / side.n_tiers(); }

void note_needs(const SideView& side, bool values, ReadNeeds* needs) {
  if (side.pages.empty()) return;
  int32_t& numbers = values ? needs->value_numbers : needs->key_numbers;
  numbers = std::max(numbers, side.n_channels);
  if (side.bases == nullptr) return;
  needs->bases = true;
  const bool several = side.pages.front().basis / side.n_tiers() != last_basis(side);
  needs->several_lifts = needs->several_lifts || (values && several);
}

}  // namespace

size_t values_between(int32_t rows, const SideView& side) {
  return rows == 0 ? 0 : static_cast<size_t>(rows - 1) * side.row_stride + side.width;
}

ReadNeeds needs_of(std::span<const HeadView> heads) {
  ReadNeeds needs;
  for (const HeadView& head : heads) {
    note_needs(head.k, false, &needs);
    note_needs(head.v, true, &needs);
  }
  return needs;
}

PageAnchors HeadTables::find_anchors(const HeadView& head, const SideView& side) {
  PageAnchors anchors;
  if (side.pages.empty() || side.bases == nullptr || side.bases[0].anchor == 0) return anchors;
  const int64_t last = head.positions != nullptr ? head.positions[head.n_rows - 1]
                                                 : int64_t{head.first_pos} + head.n_rows;
  anchors.angles = rotations_.find(side.bases[0], head.page_offset, last);
  anchors.first_position = int64_t{head.first_pos} + side.sink_rows;
  if (head.positions != nullptr) anchors.positions = head.positions + side.sink_rows;
  return anchors;
}

const PagePlace* HeadTables::find_pages(std::span<const PageView> pages,
                                        const PageAnchors& anchors) {
  // The pages of a side all lie in the same memory.
  if (twins_.find(pages[0].data).bytes > 0) return pages_.find(pages, anchors);
  places_.clear();
  for (const PageView& page : pages) {
    const std::byte* data = operands_.read(page.data, static_cast<size_t>(page.bytes));
    places_.push_back({data, page.basis, anchors.of(places_.size())});
  }
  return operands_.send(std::span<const PagePlace>(places_));
}

SideBasis HeadTables::find_basis(const BasisView& basis, const AnchorAngles& angles) {
  SideBasis found{.block = basis.block, .block_width = basis.block_width};
  const auto rows = static_cast<size_t>(basis.block);
  const size_t numbers = rows * static_cast<size_t>(basis.block_width);
  found.lift = operands_.read(basis.lift, numbers);
  found.lift8 = operands_.read(basis.lift8, numbers);
  found.lift8_scale = operands_.read(basis.lift8_scale, rows);
  if (basis.lift8 != nullptr) {
    // Queries stay about as large as they are, and so do coefficients, which are an eighth of a
    // byte's range smaller (attend_queries.h).
    const float most = *std::max_element(basis.lift8_scale, basis.lift8_scale + rows);
    if (most > 0) found.query_factor = std::ldexp(1.0f, -std::ilogb(most));
    found.score_factor = 128 / found.query_factor;
  }
  if (basis.anchor > 0) {
    found.angles = angles.rows;
    found.n_pairs = basis.n_pairs;
    found.interleaved = basis.interleaved;
  }
  return found;
}

void HeadTables::add_kinds(const SideView& side, const AnchorAngles& angles) {
  const int n_tiers = side.n_tiers();
  const int n = side.bases == nullptr ? n_tiers : (last_basis(side) + 1) * n_tiers;
  SideBasis basis;
  for (int i = 0; i < n; ++i) {
    PageFormat format = side.format_of(i % n_tiers);
    if (side.bases != nullptr) {
      format.coded.strip_bits = side.bases[i].strip_bits;
      if (i % n_tiers == 0) basis = find_basis(side.bases[i], angles);
    }
    kinds_.push_back({side_format(format), basis});
    first_strips_.push_back(kNone);
    if (format.id != CodecId::coded || format.coded.strip_bits == nullptr) continue;
    first_strips_.back() = strip_bits_.size();
    strip_bits_.push_back(0);
    for (int s = 0; s < n_strips(format.coded); ++s) {
      strip_bits_.push_back(
          static_cast<uint16_t>(strip_bits_.back() + bits_of_strip(format.coded, s)));
    }
  }
}

SideRows HeadTables::find_side(const HeadView& head, const SideView& side) {
  SideRows rows;
  rows.first_channel = side.first_channel;
  rows.n_channels = side.n_channels;
  first_kinds_.push_back(kinds_.size());
  if (!side.pages.empty()) {
    const PageAnchors anchors = find_anchors(head, side);
    add_kinds(side, anchors.angles);
    rows.n_tiers = side.n_tiers();
    rows.in_basis = side.bases != nullptr;
    rows.pages = find_pages(side.pages, anchors);
    rows.page_rows = rows_in_pages(side);
  }
  rows.sinks = operands_.read(side.sinks, values_between(side.sink_rows, side));
  rows.tail = operands_.read(side.tail, values_between(side.tail_rows, side));
  rows.row_stride = side.row_stride;
  return rows;
}

// Heads, kinds and strips, one behind the other.
const HeadRows* HeadTables::send() {
  const auto padded = [](size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  const size_t kinds_at = padded(heads_.size() * sizeof(HeadRows));
  const size_t strips_at = kinds_at + padded(kinds_.size() * sizeof(PageKind));
  const size_t end = strips_at + strip_bits_.size() * sizeof(uint16_t);
  std::byte* there = operands_.scratch(end);
  const auto* kinds = reinterpret_cast<const PageKind*>(there + kinds_at);
  const auto* strips = reinterpret_cast<const uint16_t*>(there + strips_at);
  for (size_t h = 0; h < heads_.size(); ++h) {
    heads_[h].k.kinds = kinds + first_kinds_[2 * h];
    heads_[h].v.kinds = kinds + first_kinds_[2 * h + 1];
  }
  for (size_t i = 0; i < kinds_.size(); ++i) {
    if (first_strips_[i] != kNone) kinds_[i].format.strip_bits = strips + first_strips_[i];
  }
  bytes_.assign(end, std::byte{0});
  const auto put = [&](size_t at, const auto& values) {
    if (!values.empty()) {
      std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(values[0]));
    }
  };
  put(0, heads_);
  put(kinds_at, kinds_);
  put(strips_at, strip_bits_);
  device_.upload(there, bytes_.data(), end);
  return reinterpret_cast<const HeadRows*>(there);
}

TaskHeads HeadTables::find(std::span<const HeadView> heads, int32_t first_pos, bool positions) {
  pages_.begin();
  staging_.begin_task();
  heads_.clear();
  first_kinds_.clear();
  kinds_.clear();
  first_strips_.clear();
  strip_bits_.clear();
  // First what moves tables of angles.
  for (const HeadView& head : heads) {
    find_anchors(head, head.k);
    find_anchors(head, head.v);
  }
  TaskHeads found;
  for (const HeadView& head : heads) {
    const auto n = static_cast<size_t>(head.n_rows);
    HeadRows& rows = heads_.emplace_back();
    rows.k = find_side(head, head.k);
    rows.v = find_side(head, head.v);
    rows.sink_rows = head.k.sink_rows;
    rows.n_rows = head.n_rows;
    rows.first_row = row_of(head, first_pos);
    rows.dead = operands_.read(head.dead, (n + 63) / 64);
    if (positions) rows.positions = operands_.read(head.positions, n);
    found.most_rows = std::max(found.most_rows, head.n_rows);
  }
  staging_.finish_task();
  found.rows = send();
  return found;
}

}  // namespace kve::cuda
