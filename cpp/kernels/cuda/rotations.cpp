#include "kernels/cuda/rotations.h"

#include <algorithm>

namespace kve::cuda {

Rotations::~Rotations() {
  for (Table& table : tables_) release(&table);
}

void Rotations::release(Table* table) noexcept {
  if (table->device == nullptr) return;
  const auto floats = static_cast<size_t>(table->room * table->host.row_floats());
  device_.release(reinterpret_cast<std::byte*>(table->device), floats * sizeof(float));
  table->device = nullptr;
  table->rows = 0;
  table->room = 0;
}

AnchorAngles Rotations::find(const BasisView& basis, int64_t page_start, int64_t last) {
  const int step = basis.anchor;
  const int offset = static_cast<int>(page_start % step);
  const auto serves = [&](const Table& table) { return table.host.serves(basis, step, offset); };
  auto found = std::ranges::find_if(tables_, serves);
  if (found == tables_.end()) {
    tables_.emplace_back(RotationTable(basis, step, offset));
    found = std::prev(tables_.end());
  }
  Table& table = *found;
  last = std::max<int64_t>(last, offset);
  const int64_t needed = (last - offset) / step + 1;
  const int64_t floats = table.host.row_floats();
  if (needed > table.rows) {
    table.host.extend(last);
    if (needed > table.room) {
      // What was launched before still reads the old rows.
      if (table.device != nullptr) device_.synchronize();
      release(&table);
      const int64_t room = needed + needed / 2 + 16;
      const auto bytes = static_cast<size_t>(room * floats) * sizeof(float);
      table.device = reinterpret_cast<float*>(device_.allocate(bytes));
      table.room = room;
    }
    device_.upload(table.device + table.rows * floats, table.host.rows() + table.rows * floats,
                   static_cast<size_t>((needed - table.rows) * floats) * sizeof(float));
    table.rows = needed;
  }
  return {table.device, offset, step};
}

}  // namespace kve::cuda
