// The codebooks of the IQ weight types, and how indices and signs become codes. A codebook entry is
// 4 or 8 consecutive values.
//
// The tables are declared here and defined once, in iq_grids.cpp, which says where they come from.
#pragma once

#include "formats/weight/code_group.h"

namespace kve {

template <int n_entries, int width>
struct IqGrid {
  alignas(8) int8_t entries[n_entries][width];
};

// Magnitudes 8, 25, 43.
extern const IqGrid<256, 8> kIq2XxsGrid;
extern const IqGrid<512, 8> kIq2XsGrid;
extern const IqGrid<1024, 8> kIq2SGrid;
// Magnitudes 4, 12, 20, 28, 36, 44, 52, 62.
extern const IqGrid<256, 4> kIq3XxsGrid;
// Magnitudes 1, 3, 5, ... 15.
extern const IqGrid<512, 4> kIq3SGrid;
// Values -1, 0, 1; shared by IQ1_S and IQ1_M.
extern const IqGrid<2048, 8> kIq1Grid;

// Seven stored sign bits become eight: the number of negative values is always even.
KVE_HD int even_signs(uint32_t index) {
  uint32_t parity = index ^ (index >> 4);
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return static_cast<int>(index | ((parity & 1u) << 7));
}

// codes[i] = entry[i], negated where bit i of `signs` is set.
KVE_HD void copy_signed(const int8_t* entry, int n, int signs, int8_t* codes) {
  for (int i = 0; i < n; ++i) codes[i] = to_code((signs >> i) & 1 ? -entry[i] : entry[i]);
}

// The values of IQ1 are entry +- 1/8: as codes, eight times that.
KVE_HD void copy_shifted(const int8_t* entry, bool negative, int8_t* codes) {
  for (int i = 0; i < 8; ++i) codes[i] = to_code(8 * entry[i] + (negative ? -1 : 1));
}

// d * (0.5 + nibble) * 0.25, the scale of the 2-bit types.
KVE_HD float iq2_scale(float d, uint32_t nibble) {
  return d * (0.5f + static_cast<float>(nibble)) * 0.25f;
}

}  // namespace kve
