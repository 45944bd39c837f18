#include "formats/weight/iq_grids.h"

#include "formats/weight/iq_grid_data.h"

namespace kve {

namespace {

// Expands packed entries: `values` has an entry for each index that occurs.
template <int width, int n_entries, int n_values>
constexpr IqGrid<n_entries, width> expand(const uint16_t (&packed)[n_entries],
                                          const int8_t (&values)[n_values]) {
  constexpr int kIndexBits = width == 8 ? 2 : 3;
  IqGrid<n_entries, width> grid{};
  for (int entry = 0; entry < n_entries; ++entry) {
    for (int i = 0; i < width; ++i) {
      const int index = (packed[entry] >> (kIndexBits * i)) & ((1 << kIndexBits) - 1);
      grid.entries[entry][i] = values[index];
    }
  }
  return grid;
}

constexpr int8_t kIq2Values[3] = {8, 25, 43};
constexpr int8_t kIq3XxsValues[8] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr int8_t kIq3SValues[8] = {1, 3, 5, 7, 9, 11, 13, 15};
constexpr int8_t kIq1Values[3] = {-1, 0, 1};

}  // namespace

constinit const IqGrid<256, 8> kIq2XxsGrid = expand<8>(kIq2XxsIndices, kIq2Values);
constinit const IqGrid<512, 8> kIq2XsGrid = expand<8>(kIq2XsIndices, kIq2Values);
constinit const IqGrid<1024, 8> kIq2SGrid = expand<8>(kIq2SIndices, kIq2Values);
constinit const IqGrid<256, 4> kIq3XxsGrid = expand<4>(kIq3XxsIndices, kIq3XxsValues);
constinit const IqGrid<512, 4> kIq3SGrid = expand<4>(kIq3SIndices, kIq3SValues);
constinit const IqGrid<2048, 8> kIq1Grid = expand<8>(kIq1Indices, kIq1Values);

}  // namespace kve
