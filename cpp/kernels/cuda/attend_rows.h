// Which rows a block of attention reads, where they are, and what of them a query sees.
#pragma once

#include <math.h>

#include "kernels/cuda/attend_block.h"
#include "kernels/cuda/float_fragments.h"

namespace kve::cuda {

// A run of a head's rows that are all in one place on each side. Its tile begins at row `base`.
struct Run {
  int base;
  int first;  // within the tile
  int end;
};

// Which tiles a block reads, and which rows its queries see of them.
struct Walk {
  int kv_head;
  int first_vector;
  int sink_tiles;
  int first_tile;
  int end_tile;
  int begin;
  int end;
};
__device__ __forceinline__ Walk plan_walk(const AttendArgs& args, const HeadRows& head,
                                          int columns) {
  Walk walk{};
  walk.kv_head = static_cast<int>(blockIdx.y);
  walk.first_vector = static_cast<int>(blockIdx.z) * columns;
  const int last_vector = least(walk.first_vector + columns, args.n_queries * args.group) - 1;
  walk.end = least(head.n_rows, head.first_row + last_vector / args.group + 1);
  if (args.window > 0) {
    const int oldest = head.first_row + walk.first_vector / args.group - args.window + 1;
    walk.begin = most_of(0, oldest);
  }
  walk.sink_tiles = (head.sink_rows + kTileRows - 1) / kTileRows;
  const int tiles = walk.sink_tiles + (head.n_rows - head.sink_rows + kTileRows - 1) / kTileRows;
  walk.first_tile = static_cast<int>(blockIdx.x) * args.part_tiles;
  walk.end_tile = least(tiles, walk.first_tile + args.part_tiles);
  return walk;
}

// Where rows of a run are.
struct RunRows {
  const PageKind* kind;  // of rows in a page; else null
  CodedRows coded;       // of codes; else without a page
  FloatRows floats;
  int n_channels;
};
// `dim`: channels of rows that are not in a page; tables: as in Shared.
__device__ __forceinline__ RunRows rows_of(const SideRows& side, int sink_rows, const Run& run,
                                           int dim, const uint16_t* tables) {
  RunRows rows{nullptr,
               {nullptr, nullptr, 0, nullptr},
               {nullptr, 0, run.first, run.end, FloatKind::f16},
               dim};
  const int body = run.base - sink_rows;  // negative: sinks
  if (body >= 0 && body + run.first < side.page_rows) {
    const PagePlace place = side.pages[body / kPageTokens];
    const SideFormat& format = side.kinds[place.kind].format;
    rows.kind = side.kinds + place.kind;
    rows.n_channels = side.n_channels;
    if (format.coded) {
      rows.coded = {&format, place.data, side.first_channel,
                    format.has_table ? tables + place.kind % side.n_tiers * kTableCodes : nullptr};
    } else {
      const int64_t bytes = format.floats == FloatKind::f32 ? 4 : 2;
      rows.floats.data = place.data + bytes * side.first_channel;
      rows.floats.stride = bytes * format.width;
      rows.floats.floats = format.floats;
    }
    return rows;
  }
  const uint16_t* data = body < 0 ? side.sinks : side.tail;
  const int64_t row = body < 0 ? run.base : body - side.page_rows;
  rows.floats.data = reinterpret_cast<const std::byte*>(data + row * side.row_stride);
  rows.floats.stride = 2 * static_cast<int64_t>(side.row_stride);
  return rows;
}

// Which row a vector sees last, and its head's linear bias, with log2(e).
struct VectorView {
  int last;
  float slope;
};
__device__ __forceinline__ VectorView view_of(const AttendArgs& args, const HeadRows& head,
                                              int kv_head, int vector) {
  VectorView view{head.first_row + vector / args.group, 0};
  if (args.alibi != nullptr) {
    view.slope = args.alibi[kv_head * args.group + vector % args.group] * kLog2E;
  }
  return view;
}

// The score of token t of a run, in base 2, from the product of its key and a query; -infinity
// where the query does not see it. `factor` belongs to the product.
__device__ __forceinline__ float score_of(const AttendArgs& args, const HeadRows& head,
                                          const Run& run, const VectorView& view, int t,
                                          float product, float factor) {
  const int row = run.base + t;
  bool visible = t >= run.first && t < run.end && row <= view.last;
  if (args.window > 0) visible = visible && row > view.last - args.window;
  if (visible && head.dead != nullptr) visible = (head.dead[row / 64] >> (row % 64) & 1) == 0;
  if (!visible) return -INFINITY;
  float score = product * (args.scale * factor);
  if (args.softcap > 0) score = args.softcap * tanhf(product * (args.inverse_softcap * factor));
  if (args.alibi != nullptr) {
    const int own = least(view.last, head.n_rows - 1);
    const int distance =
        head.positions == nullptr ? row - own : head.positions[row] - head.positions[own];
    score += view.slope * static_cast<float>(distance);
  }
  return score;
}

}  // namespace kve::cuda
