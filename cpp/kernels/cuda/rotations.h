// Angles of rotary embeddings at the anchors of pages (kernels/cpu/rotation_table.h), on the
// device, where they stay.
#pragma once

#include <list>

#include "kernels/cpu/rotation_table.h"
#include "kernels/cuda/device.h"

namespace kve::cuda {

// The rows of a table, for positions that are congruent to page_start.
struct AnchorAngles {
  const float* rows = nullptr;  // device memory: cosines, then sines, of all pairs
  int32_t offset = 0;
  int32_t step = 1;

  int32_t row_of(int64_t position) const {
    return static_cast<int32_t>((position - offset) / step);
  }
};

class Rotations {
 public:
  // The device outlives the tables.
  explicit Rotations(Device& device) : device_(device) {}
  Rotations(const Rotations&) = delete;
  Rotations& operator=(const Rotations&) = delete;
  ~Rotations();

  // For a basis with an anchor, and positions up to `last`. The next call for later ones
  // may move them.
  AnchorAngles find(const BasisView& basis, int64_t page_start, int64_t last);

 private:
  struct Table {
    explicit Table(const RotationTable& angles) : host(angles) {}
    RotationTable host;
    float* device = nullptr;
    int64_t rows = 0;  // that are there
    int64_t room = 0;
  };
  void release(Table* table) noexcept;

  Device& device_;
  std::list<Table> tables_;
};

}  // namespace kve::cuda
