// What the tests of coded pages share.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "formats/cache/group_testing.h"
#include "formats/cache/page_decode.h"
#include "formats/cache/page_encode.h"

namespace kve::testing {

using Bytes = std::vector<std::byte>;

inline std::string page_name(const CodedPage& page) {
  constexpr const char* kChannels[] = {"", " centred", " scaled"};
  return name_of(page.coding) + (page.values ? " values" : " keys") +
         (page.per == Per::token ? " per token" : " per channel") +
         kChannels[static_cast<size_t>(page.channels)] + " group " + std::to_string(page.group) +
         " width " + std::to_string(page.width) +
         (page.outliers > 0 ? " outliers " + std::to_string(page.outliers) : "") +
         (page.strip_bits != nullptr ? " strips" : "");
}

// A whole page over memory that holds `fill`.
inline Bytes encode(const CodedPage& page, const std::vector<float>& rows,
                    std::byte fill = std::byte{0}) {
  Bytes data(page_offsets(page).end, fill);
  Bytes scratch(encode_scratch(page));
  EXPECT_TRUE(
      encode_page(page, rows.data(), page.width, data.data(), 0, kPageTokens, scratch.data()))
      << page_name(page);
  return data;
}

inline std::vector<float> decode(const CodedPage& page, const Bytes& data) {
  std::vector<float> out(static_cast<size_t>(kPageTokens * page.width));
  decode_page(page, data.data(), 0, kPageTokens, 0, page.width, out.data(), page.width);
  return out;
}

}  // namespace kve::testing
