// Reads the rows of one side of a cache in order: pages first, then the f16 tail. Rows of plain
// floats are handed out as they lie in memory, rows of other codecs are decoded to f32.
#pragma once

#include "kernels/cpu/isa/cache_rows.h"

namespace kve::KVE_ISA {

namespace {

// Neighbouring rows of plain floats (codec f32, f16 or bf16), `width` values apart.
struct RowRun {
  CodecId type;
  const std::byte* data;
  int32_t rows;
};

class SideReader {
 public:
  explicit SideReader(const SideArgs& side) : side_(side) {}

  // Up to n rows from `first` on, which does not decrease from call to call. Coded rows are decoded
  // to `scratch`, `coded_rows` of them at most.
  RowRun read(int32_t first, int32_t n, float* scratch, int32_t coded_rows) {
    const Place place = advance(first);
    const CodecId type = type_at(place.page);
    const int32_t left = place.page < side_.n_pages ? side_.pages[place.page].rows - place.row : n;
    const auto rows = static_cast<int32_t>(least(n, left));
    if (type <= CodecId::bf16) return {type, address(place), rows};
    const auto count = static_cast<int32_t>(least(rows, coded_rows));
    decode_page(*side_.codec, side_.group, side_.width, side_.pages[place.page].data, place.row,
                count, scratch, side_.width);
    return {CodecId::f32, reinterpret_cast<const std::byte*>(scratch), count};
  }
  // Where row `first` (not before the last one read) lies, or null when it is coded.
  const std::byte* peek(int32_t first) const {
    const Place place = find(first);
    return type_at(place.page) <= CodecId::bf16 ? address(place) : nullptr;
  }

 private:
  struct Place {
    int32_t page;
    int32_t row;    // within the page
    int32_t start;  // cache row of the page's first row
  };
  Place find(int32_t first) const {
    int32_t page = page_;
    int32_t start = start_;
    while (page < side_.n_pages && first >= start + side_.pages[page].rows) {
      start += side_.pages[page++].rows;
    }
    return {page, first - start, start};
  }
  Place advance(int32_t first) {
    const Place place = find(first);
    page_ = place.page;
    start_ = place.start;
    return place;
  }
  CodecId type_at(int32_t page) const {
    return page < side_.n_pages ? side_.codec->id : CodecId::f16;
  }
  const std::byte* address(const Place& place) const {
    const int64_t value = int64_t{place.row} * side_.width;
    if (place.page == side_.n_pages) return reinterpret_cast<const std::byte*>(side_.tail + value);
    return side_.pages[place.page].data + value * (side_.codec->id == CodecId::f32 ? 4 : 2);
  }

  const SideArgs& side_;
  int32_t page_ = 0;
  int32_t start_ = 0;
};
static_assert(CodecId::f32 < CodecId::bf16 && CodecId::f16 < CodecId::bf16);

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
