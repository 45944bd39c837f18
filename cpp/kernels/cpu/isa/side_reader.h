// Reads the rows of one side of a cache in order: sinks, pages, the f16 tail. Rows of plain floats
// are handed out as they lie in memory, others are decoded and rebuilt in f32.
#pragma once

#include "kernels/cpu/isa/attend.h"
#include "kernels/cpu/isa/cache_rows.h"

namespace kve::KVE_ISA {

namespace {

class SideReader {
 public:
  // `lifting`: scratch memory of lift_scratch() bytes; `rounded` as in rebuild_rows().
  SideReader(const SideArgs& side, int32_t first_pos, bool rounded, std::byte* lifting)
      : side_(side), first_pos_(first_pos), rounded_(rounded), lifting_(lifting) {}

  // Up to n rows from `first` on, which does not decrease from call to call. Coded rows are decoded
  // to `scratch`, `coded_rows` of them at most.
  RowRun read(int32_t first, int32_t n, float* scratch, int32_t coded_rows) {
    const Place place = advance(first);
    const int32_t left = place.part < side_.n_pages ? rows_of(place.part) - place.row : n;
    const auto rows = static_cast<int32_t>(least(n, left));
    if (is_plain(place.part)) {
      return {type_at(place.part), address(place), rows, stride_at(place.part)};
    }
    const auto count = static_cast<int32_t>(least(rows, coded_rows));
    rebuild_rows(side_, side_.pages[place.part], place.row, count, {place.start, first_pos_},
                 rounded_, scratch, lifting_);
    return {CodecId::f32, reinterpret_cast<const std::byte*>(scratch), count, side_.width};
  }
  // The coded page of whose rows [first, first + n) are the first, if it is to be read code by
  // code; else null. `first` as in peek().
  const PageView* coded_page(int32_t first, int32_t n) const {
    if (side_.strips == nullptr) return nullptr;
    const Place place = find(first);
    if (!is_page(place.part) || place.row != 0 || n > rows_of(place.part)) return nullptr;
    return side_.pages + place.part;
  }
  // Where row `first` (not before the last one read) lies, or null when it is coded.
  const std::byte* peek(int32_t first) const {
    const Place place = find(first);
    return is_plain(place.part) ? address(place) : nullptr;
  }
  // How many bytes the row after it lies behind it.
  int64_t peek_stride(int32_t first) const {
    const int32_t part = find(first).part;
    return stride_at(part) * (type_at(part) == CodecId::f32 ? 4 : 2);
  }

 private:
  // Parts are the sinks (-1), the pages, and the tail (n_pages).
  struct Place {
    int32_t part;
    int32_t row;    // within the part
    int32_t start;  // cache row of the part's first row
  };
  int32_t rows_of(int32_t part) const {
    return part < 0 ? side_.sink_rows : side_.pages[part].rows;
  }
  Place find(int32_t first) const {
    int32_t part = part_;
    int32_t start = start_;
    while (part < side_.n_pages && first >= start + rows_of(part)) start += rows_of(part++);
    return {part, first - start, start};
  }
  Place advance(int32_t first) {
    const Place place = find(first);
    part_ = place.part;
    start_ = place.start;
    return place;
  }
  bool is_page(int32_t part) const { return part >= 0 && part < side_.n_pages; }
  bool is_plain(int32_t part) const {
    return !is_page(part) || (side_.format.id != CodecId::coded && side_.bases == nullptr);
  }
  CodecId type_at(int32_t part) const { return is_page(part) ? side_.format.id : CodecId::f16; }
  int64_t stride_at(int32_t part) const {
    return is_page(part) ? side_.format.width : side_.row_stride;
  }
  const std::byte* address(const Place& place) const {
    const int64_t value = int64_t{place.row} * stride_at(place.part);
    if (place.part < 0) return reinterpret_cast<const std::byte*>(side_.sinks + value);
    if (place.part == side_.n_pages) return reinterpret_cast<const std::byte*>(side_.tail + value);
    return side_.pages[place.part].data +
           (value + side_.first_channel) * (side_.format.id == CodecId::f32 ? 4 : 2);
  }

  const SideArgs& side_;
  int32_t first_pos_;
  bool rounded_;
  std::byte* lifting_;
  int32_t part_ = -1;
  int32_t start_ = 0;
};

}  // namespace

// How rows of each type are loaded.
template <CodecId kType>
static inline const auto* row_values(const std::byte* data) {
  if constexpr (kType == CodecId::f32) {
    return reinterpret_cast<const float*>(data);
  } else {
    return reinterpret_cast<const uint16_t*>(data);
  }
}
template <CodecId kType, class Value>
static inline F32 load_values(const Value* p) {
  if constexpr (kType == CodecId::f32) {
    return load(p);
  } else if constexpr (kType == CodecId::f16) {
    return load_f16(p);
  } else {
    return load_bf16(p);
  }
}
template <CodecId kType, class Value>
static inline F32 load_values_n(const Value* p, int64_t n) {
  if constexpr (kType == CodecId::f32) {
    return load_n(p, n);
  } else if constexpr (kType == CodecId::f16) {
    return load_f16_n(p, n);
  } else {
    return load_bf16_n(p, n);
  }
}

}  // namespace kve::KVE_ISA
