// Which tokens the rows of one kv head are, where a selector drops some, and the attention they
// got.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "cache/row_positions.h"

namespace kve {

struct KeptHead {
  explicit KeptHead(const std::shared_ptr<MemoryCounter>& counter);

  int rows() const { return static_cast<int>(positions.size()); }
  int alive() const { return rows() - n_dead; }
  bool is_dead(int row) const {
    const auto r = static_cast<size_t>(row);
    return n_dead > 0 && (dead[r / 64] >> (r % 64) & 1) != 0;
  }
  bool has_gaps() const { return rows() > 0 && positions.back() != rows() - 1; }
  RowPositions row_positions() const {
    return has_gaps() ? RowPositions(positions.data()) : RowPositions(0);
  }
  // What all queries gave a row, where that is asked for.
  float mass_of(int row) const {
    const auto r = static_cast<size_t>(row);
    return pending.empty() ? mass[r] : mass[r] + pending[r];
  }
  std::vector<float> masses(int n) const;  // of the first n rows
  // Rows of tokens before position n.
  int rows_before(int n) const;
  // Those of the first n rows that are not dead.
  std::vector<int32_t> live_rows(int n) const;

  // Adds the rows of n tokens from first_pos on. Throws CapacityError, and nothing has changed.
  void append(int n, int first_pos, bool weighs);
  void truncate(int n_rows) noexcept;
  void count_dead() noexcept;  // after bits were written
  // Marks the rows of `doomed` dead, and adds `pending` to `mass`.
  void commit() noexcept;
  void rollback() noexcept;
  // The same tokens, but only some rows (rising), none of them dead. Throws CapacityError.
  KeptHead with_rows(std::span<const int32_t> kept, bool reassign) const;
  void forget_mass() noexcept;
  size_t bytes() const;

  CountedVector<int32_t> positions;  // [rows] rising, committed and appended
  CountedVector<uint64_t> dead;      // as HeadView::dead
  int n_dead = 0;
  CountedVector<int32_t> doomed;  // rows that the commit at hand marks dead
  // What all queries so far gave the rows, and those of the pass at hand: [rows], or empty where no
  // selector asks for it. Without `mass` the latter is for the commit at hand alone.
  CountedVector<float> mass;
  CountedVector<float> pending;  // empty until there is a pass
};

}  // namespace kve
