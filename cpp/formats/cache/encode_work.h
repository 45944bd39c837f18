// The scratch memory of encode_page().
#pragma once

#include "formats/cache/coded_page.h"
#include "formats/cache/outliers.h"
#include "formats/cache/page_codes.h"
#include "formats/cache/two_axis.h"

namespace kve {

// Unnamed namespaces keep the members of structs from becoming weak symbols.
namespace {

// Scratch memory of one call, all rows of a page at most.
struct EncodeWork {
  int64_t stride;  // of rows: the width rounded up to whole vectors
  float* rows;     // [64][stride]: what groups are coded from, 0 past the width
  float* turned;   // [width][64]: the same, for groups along a row
  float* token;    // [64] factors
  float* channel;  // [width] factors
  float* balance;  // two_axes_scratch()
  float* sorted;   // outlier_scratch()
  uint8_t* codes;  // [64][stride] or [stride][64]
  size_t size;

  EncodeWork(std::byte* data, const CodedPage& page) {
    const int width = page.width;
    stride = padded_width(width);
    const auto w = static_cast<size_t>(stride);
    size = 0;
    const auto take = [&](size_t bytes) {
      std::byte* at = data + size;
      size += (bytes + 63) / 64 * 64;
      return at;
    };
    rows = reinterpret_cast<float*>(take(kPageTokens * w * sizeof(float)));
    turned = reinterpret_cast<float*>(take(kPageTokens * w * sizeof(float)));
    token = reinterpret_cast<float*>(take(kPageTokens * sizeof(float)));
    channel = reinterpret_cast<float*>(take(w * sizeof(float)));
    balance = reinterpret_cast<float*>(take(two_axes_scratch(kPageTokens, width) * sizeof(float)));
    const size_t in_order = page.outliers > 0 ? outlier_scratch(page.group) : 0;
    sorted = reinterpret_cast<float*>(take(in_order * sizeof(float)));
    codes = reinterpret_cast<uint8_t*>(take(kPageTokens * w));
  }
};

}  // namespace

// Bytes of scratch memory that encode_page needs.
KVE_HD size_t encode_scratch(const CodedPage& page) { return EncodeWork(nullptr, page).size; }

}  // namespace kve
