// The heads of a task as attention kernels read them: where their rows are on the device, and how
// pages are written. All of it goes there in one piece.
#pragma once

#include <span>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/operands.h"
#include "kernels/cuda/page_tables.h"
#include "kernels/cuda/rotations.h"

namespace kve::cuda {

// Of `rows` rows of a head among those of others.
size_t values_between(int32_t rows, const SideView& side);

// Of the kernels that read such heads.
ReadNeeds needs_of(std::span<const HeadView> heads);

struct TaskHeads {
  const HeadRows* rows = nullptr;  // device memory, [heads]
  int32_t most_rows = 0;
};

class HeadTables {
 public:
  // All outlive the tables.
  HeadTables(Device& device, const TwinMemory& twins, Operands& operands, Rotations& rotations,
             Staging& staging)
      : device_(device),
        twins_(twins),
        operands_(operands),
        rotations_(rotations),
        staging_(staging),
        pages_(device, twins, staging) {}

  // Heads whose sides are not refused, for queries from first_pos on, until the next operation of
  // `operands` begins. With the positions of rows, where they are needed.
  TaskHeads find(std::span<const HeadView> heads, int32_t first_pos, bool positions);

 private:
  static constexpr size_t kNone = SIZE_MAX;
  SideRows find_side(const HeadView& head, const SideView& side);
  PageAnchors find_anchors(const HeadView& head, const SideView& side);
  const PagePlace* find_pages(std::span<const PageView> pages, const PageAnchors& anchors);
  void add_kinds(const SideView& side, const AnchorAngles& angles);
  SideBasis find_basis(const BasisView& basis, const AnchorAngles& angles);
  const HeadRows* send();

  Device& device_;
  const TwinMemory& twins_;
  Operands& operands_;
  Rotations& rotations_;
  Staging& staging_;
  PageTables pages_;
  // Of one task; kept for their memory.
  std::vector<HeadRows> heads_;
  std::vector<size_t> first_kinds_;  // of the heads' keys, values, ...
  std::vector<PageKind> kinds_;
  std::vector<size_t> first_strips_;  // of the kinds, in strip_bits_; kNone: they have none
  std::vector<uint16_t> strip_bits_;
  std::vector<PagePlace> places_;
  std::vector<std::byte> bytes_;
};

}  // namespace kve::cuda
