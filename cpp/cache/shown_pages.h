// Which pages the queries of a pass read, where each has pages of its own (quest).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/memory.h"
#include "kernels/backend.h"

namespace kve {

// What the few queries of a pass are shown of one layer, each its own pages: memory that is kept
// from layer to layer.
struct ShownPages {
  explicit ShownPages(const std::shared_ptr<MemoryCounter>& counter);
  // For passes of n_queries over n_rows rows. Throws CapacityError.
  void resize(int n_queries, int n_heads, int n_rows, int n_pages, int bounds_width);
  size_t bytes() const;

  int words = 0;                  // of 64 rows
  int scores_stride = 0;          // of one query and head
  int vector_stride = 0;          // the same
  CountedVector<HeadView> views;  // [n_queries][n_heads]
  CountedVector<uint64_t> dead;   // [n_queries][n_heads][words]
  CountedVector<float> vectors;   // [n_queries][n_heads][vector_stride]
  CountedVector<float> scores;    // [n_queries][n_heads][scores_stride]
  CountedVector<float> ranked;    // the same
};

}  // namespace kve
