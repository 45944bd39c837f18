// The parameters of groups in the bytes of a page.
#pragma once

#include "formats/cache/coded_page.h"

namespace kve {

// Writes the parameters of n groups side by side, the first of which has the given indices.
KVE_HD void put_params(const CodedPage& page, const GroupParams* params, int n, size_t scale,
                       size_t zero, std::byte* data) {
  const PageOffsets at = page_offsets(page);
  std::byte* scales = data + at.scales + scale * scale_size(page);
  if (page.coding.scale == ScaleFormat::log8) {
    for (int i = 0; i < n; ++i) scales[i] = static_cast<std::byte>(params[i].scale);
  } else {
    for (int i = 0; i < n; ++i) write_u16(scales + 2 * i, params[i].scale);
  }
  if (!has_zero(page.coding.coding)) return;
  std::byte* zeros = data + at.zeros + 2 * zero;
  for (int i = 0; i < n; ++i) write_u16(zeros + 2 * i, params[i].zero);
}

}  // namespace kve
