// The memory of the next tile's rows, prefetched in equal shares while this one is computed.
#pragma once

#include "kernels/cpu/isa/attend.h"
#include "kernels/cpu/isa/side_reader.h"

namespace kve::KVE_ISA {

namespace {

class NextTile {
 public:
  NextTile() = default;
  // The tile that begins at row `next`, if that is before `end`.
  NextTile(const AttendChunk& chunk, const SideReader& keys, const SideReader& values, int32_t next,
           int32_t end, int64_t shares) {
    if (next >= end) return;
    sides_[0] = side(chunk.k, keys, next, shares);
    sides_[1] = side(chunk.v, values, next, shares);
  }

  void prefetch() {
    for (const Side& one : sides_) {
      const int64_t last = least((share_ + 1) * one.share, one.runs);
      for (int64_t r = share_ * one.share; r < last; ++r) {
        const std::byte* run = one.data + r * one.stride;
        for (int64_t b = 0; b < one.run_bytes; b += 64) prefetch_shared(run + b);
      }
    }
    ++share_;
  }

 private:
  // Runs of bytes: rows, or the lines of what lies without gaps.
  struct Side {
    const std::byte* data = nullptr;
    int64_t run_bytes = 0;
    int64_t stride = 0;
    int64_t runs = 0;
    int64_t share = 0;
  };
  static Side side(const SideArgs& args, const SideReader& reader, int32_t next, int64_t shares) {
    const PageView* page = reader.coded_page(next, 1);
    const std::byte* data = page != nullptr ? page->data : reader.peek(next);
    if (data == nullptr) return {};
    const int64_t row_bytes = 2 * int64_t{args.width};
    const int64_t stride = page != nullptr ? 0 : reader.peek_stride(next);
    // Rows of heads that share pages or a tail lie apart.
    if (stride > row_bytes + 64) return {data, row_bytes, stride, kTile, share_of(kTile, shares)};
    const int64_t lines = ((page != nullptr ? page->bytes : kTile * row_bytes) + 63) / 64;
    return {data, 64, 64, lines, share_of(lines, shares)};
  }

  static int64_t share_of(int64_t runs, int64_t shares) { return (runs + shares - 1) / shares; }

  Side sides_[2];
  int64_t share_ = 0;
};

}  // namespace

}  // namespace kve::KVE_ISA
