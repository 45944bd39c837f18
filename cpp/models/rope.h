// The angles of rotary position embeddings.
#pragma once

#include <span>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "models/spec.h"

namespace kve {

// cos and sin of one RopeSpec for the positions of a batch. Computed once per forward pass in
// double precision, so that long contexts do not lose the phase.
class RopeTable {
 public:
  // `memory` is for cos() and sin(), and outlives the table.
  explicit RopeTable(const RopeSpec& spec, MemorySource& memory = host_memory());

  // Fills cos() and sin() with one row per position. Allocates only when the batch grows.
  void set_positions(std::span<const int32_t> positions);
  ConstMat cos() const;  // [n_positions, rotary_dim / 2]
  ConstMat sin() const;
  RopeLayout layout() const { return layout_; }
  // Angle per position of every pair, [rotary_dim / 2], context extension included.
  std::span<const double> frequencies() const { return frequencies_; }
  // Factor on the rotated vector (YaRN's attention temperature); 1 otherwise.
  double magnitude() const { return magnitude_; }

 private:
  RopeLayout layout_;
  std::vector<double> frequencies_;
  double magnitude_ = 1;
  Scratch memory_;
  float* cos_ = nullptr;
  float* sin_ = nullptr;
  int64_t n_positions_ = 0;
};

}  // namespace kve
