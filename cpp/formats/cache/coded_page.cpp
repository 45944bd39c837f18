#include "formats/cache/coded_page.h"

#include <cstring>

#include "formats/cache/page_codes.h"

namespace kve {

void clear_rows(const CodedPage& page, std::byte* data, int n_rows) {
  const PageOffsets at = page_offsets(page);
  if (n_rows == 0) {
    std::memset(data, 0, at.end);
    return;
  }
  uint8_t code = 0;  // of all channels
  for (int token = n_rows; token < kPageTokens; ++token) {
    write_codes(page, {&code, 0, 0}, token, 1, data);
    for (int c = 0; c < page.width; ++c) {
      if (c < coded_width(page)) {
        const size_t size = scale_size(page);
        const size_t index = scale_index(page, token, c);
        std::memset(data + at.scales + size * index, 0, size);
        for (int e = 0; e < page.outliers; ++e) {
          // The first places: within a group, and rising.
          write_outlier(page, at, static_cast<size_t>(e) * n_scales(page) + index, e, 0, data);
        }
      }
      if (has_zero(page.coding.coding)) {
        write_u16(data + at.zeros + 2 * zero_index(page, token, c), 0);
      }
    }
  }
}

}  // namespace kve
