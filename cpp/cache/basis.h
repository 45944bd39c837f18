// Bases in which rows are stored. A projector (cache/project/) computes a BasisData; a Basis is
// what pages share and kernels read (kernels/basis_view.h); the functions at the end are what
// kernels do, as clear loops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "kernels/basis_view.h"

namespace kve {

struct BasisData {
  int dim = 0;
  int width = 0;
  int block = 0;
  int block_width = 0;        // all as in BasisView
  bool int8 = false;          // how the lift is stored: int8 and a factor per row, or binary16
  std::vector<float> lift;    // [block][block_width]
  std::vector<float> row;     // [block], empty: ones
  std::vector<float> column;  // [block_width], empty: ones; empty with int8
  // 0 to 8 per strip, or so for each tier of the side: [tiers][strips]. Empty: the codec's.
  std::vector<uint8_t> strip_bits;
};

// Immutable. The lift is rounded to binary16, after all of it was multiplied by a power of two
// where binary16 asks for it; the other direction is scaled to fit what was rounded, so that a
// component alone survives projecting and lifting up to float32 rounding. Or, at half the bytes, it
// is rounded to int8: columns that were orthonormal (in the weights `row`) are then a hundredth
// off, and projecting twice (BasisView) leaves 1e-4. The numbers lie in memory of the counter's
// source, where a device reads them as well.
class Basis {
 public:
  // Throws CapacityError.
  static std::shared_ptr<const Basis> make(const BasisData& data,
                                           const std::shared_ptr<MemoryCounter>& counter);

  // The fields on rotary embeddings are left 0: they belong to the layer. Valid while this lives.
  BasisView view() const { return view_; }
  std::span<const uint8_t> strip_bits() const { return {view_.strip_bits, n_strip_bits_}; }
  // Counted bytes, those of this object and of the count of its holders included.
  size_t bytes() const { return memory_.size() + own_bytes_; }

  // Little-endian: u32 version | i32 dim, width, block, block_width | u32 is int8, has row, has
  // column, number of strips | lift | factors of an int8 lift | row | column | strip_bits.
  std::vector<std::byte> save() const;
  // Throws FormatError unless `bytes` is what save() gives for some basis with finite numbers.
  static std::shared_ptr<const Basis> load(std::span<const std::byte> bytes,
                                           const std::shared_ptr<MemoryCounter>& counter);

 private:
  struct Stored;
  static std::shared_ptr<const Basis> make(const Stored& stored,
                                           const std::shared_ptr<MemoryCounter>& counter);

 public:
  // For make().
  Basis(const Stored& stored, const std::shared_ptr<MemoryCounter>& counter);

 private:
  BasisView view_;
  size_t n_strip_bits_;
  size_t own_bytes_ = 0;
  LargeBlock memory_;
};

// values [n, dim] to coefficients [n, width]: the direction of encoding.
void project_rows(const BasisView& basis, ConstMat values, Mat coefficients);
// coefficients [n, width] to values [n, dim].
void lift_rows(const BasisView& basis, ConstMat coefficients, Mat values);
// out[width] = lift^T query[dim]: then query . value = out . coefficients.
void project_query(const BasisView& basis, const float* query, float* out);

}  // namespace kve
