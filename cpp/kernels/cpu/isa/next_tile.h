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
      const int64_t last = least((share_ + 1) * one.share, one.bytes);
      for (int64_t b = share_ * one.share; b < last; b += 64) prefetch_shared(one.data + b);
    }
    ++share_;
  }

 private:
  struct Side {
    const std::byte* data = nullptr;
    int64_t bytes = 0;
    int64_t share = 0;
  };
  static Side side(const SideArgs& args, const SideReader& reader, int32_t next, int64_t shares) {
    const PageView* page = reader.coded_page(next, 1);
    const std::byte* data = page != nullptr ? page->data : reader.peek(next);
    if (data == nullptr) return {};
    const int64_t bytes = page != nullptr ? page->bytes : 2 * kTile * int64_t{args.width};
    return {data, bytes, round_up((bytes + shares - 1) / shares, 64)};
  }

  Side sides_[2];
  int64_t share_ = 0;
};

}  // namespace

}  // namespace kve::KVE_ISA
