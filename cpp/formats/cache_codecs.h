// formats/: how numbers become bytes, for weights (weight_formats.h) and for cached keys and values
// (this header). No policy, no files, no threads.
//
// A codec writes rows of keys or values into pages of kPageTokens rows: plain floats row after row,
// or codes of few bits (cache/coded_page.h). These portable functions define every codec; kernels/
// may read the same bytes faster and is tested against them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "formats/cache/coded_page.h"

namespace kve {

enum class CodecId : uint8_t { f32, f16, bf16, coded };

// `group` of a codec whose groups are as long as a row: of one head, or of all heads together.
inline constexpr int kWholeHead = -1;
inline constexpr int kWholeRow = -2;

// A codec with its parameters, for rows of any width.
struct CodecSpec {
  CodecId id = CodecId::f16;
  // The rest is for CodecId::coded.
  GroupCoding coding{};
  Per per = Per::token;
  Channels channels = Channels::plain;
  int32_t group = 0;     // values that share a scale
  int32_t outliers = 0;  // per cent of them that are kept as they are; at least one, if any

  bool is_float() const { return id != CodecId::coded; }
  bool operator==(const CodecSpec&) const = default;
};

// A codec for rows of one width: all that is needed to read a page.
struct PageFormat {
  CodecId id = CodecId::f16;
  int32_t width = 0;
  CodedPage coded{};  // width and group are set, for CodecId::coded
};

// `values`: for pages of values, else of keys. The group must divide what it runs along.
PageFormat page_format(const CodecSpec& codec, int width, bool values);

// Bytes of a page: codes, and what belongs to them.
size_t code_bytes(const PageFormat& format);
size_t scale_bytes(const PageFormat& format);
size_t page_bytes(const PageFormat& format);
// Where something else begins in the memory of such a page: behind it, on a cache line.
size_t end_of_page(const PageFormat& format);

// Rows that must be coded together, beginning at a multiple of their number.
int rows_per_unit(const PageFormat& format);

size_t encode_scratch(const PageFormat& format);  // bytes
// Codes rows [first_row, first_row + n_rows) of a page from `src` [n_rows, width] (row stride in
// floats). False, with those rows undefined, when a value is NaN or infinite. A page of floats may
// have any number of rows.
bool encode_rows(const PageFormat& format, const float* src, int64_t src_stride, std::byte* page,
                 int first_row, int n_rows, std::byte* scratch);
// The inverse for channels [first_channel, first_channel + n_channels), into dst [n_rows,
// n_channels].
void decode_rows(const PageFormat& format, const std::byte* page, int first_row, int n_rows,
                 int first_channel, int n_channels, float* dst, int64_t dst_stride);
// Makes rows from n_rows on, of a page of which only the rows before are used, equal in all pages.
void clear_rows(const PageFormat& format, std::byte* page, int n_rows);
// Whether what says where values stand is possible, in bytes that anybody may have written. (The
// values of such a page may still be infinite.)
bool is_sound(const PageFormat& format, const std::byte* page);

// "f16", "asym4": for messages and traces.
std::string format_name(const PageFormat& format);

// Bits of a value with all that belongs to it, in rows of head_dim values (all heads: row_width).
double bits_per_value(const CodecSpec& codec, int head_dim, int row_width, bool values);

}  // namespace kve
