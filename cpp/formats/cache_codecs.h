// formats/: how numbers become bytes, for weights (weight_formats.h) and for cached keys and values
// (this header). No policy, no files, no threads.
//
// A cache codec writes rows (one row: the head_dim values of one token and kv head) into pages of
// kPageTokens rows. These portable functions define every codec; kernels/ may read the same bytes
// faster and is tested against them. Code that is compiled for one codec includes that codec's
// header from cache/ instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "formats/cache/codec_math.h"

namespace kve {

enum class CodecId : uint8_t { f32, f16, bf16, q8_0, q4_0, int8, int4 };

// A codec with its parameters: all that is needed to read a page.
struct CodecSpec {
  CodecId id = CodecId::f16;
  int group = 0;  // values per scale along the channels; fixed by some codecs, 0 for plain floats

  bool operator==(const CodecSpec&) const = default;
};

struct CacheCodec {
  CodecId id;
  std::string_view name;         // as written in a cache spec
  std::string_view description;  // one line
  std::string_view paper;        // arXiv id, or where the format comes from
  int default_group;             // 0: not grouped
  bool group_is_free;            // whether `group=` may be chosen, see kCacheGroups
  int default_tail;              // newest tokens kept in f16 when the spec does not say

  // Bytes that `rows` rows of `width` values need, without and with only their scales. A page holds
  // code_bytes + scale_bytes of kPageTokens rows.
  size_t (*code_bytes)(int rows, int width, int group);
  size_t (*scale_bytes)(int rows, int width, int group);
  // In a page, either row after row (each with its scales), or all codes and then all scales.
  bool scales_follow_codes;

  // Writes rows [first_row, first_row + n_rows) of a page laid out for kPageTokens rows from `src`
  // [n_rows, width] (row stride in floats). False, with the page undefined in those rows, when a
  // value is NaN or infinite. Without scales a page may have any number of rows.
  bool (*encode)(const float* src, int64_t src_stride, std::byte* page, int first_row, int n_rows,
                 int width, int group);
  // The inverse, into dst [n_rows, width].
  void (*decode)(const std::byte* page, int first_row, int n_rows, int width, int group, float* dst,
                 int64_t dst_stride);

  bool is_float() const { return default_group == 0; }
};

// The values `group=` may have where it is free; it must divide the row's width.
inline constexpr int kCacheGroups[] = {8, 16, 32, 64, 128};

const CacheCodec& codec(CodecId id);
const CacheCodec* find_codec(std::string_view name);  // null when unknown
std::span<const CacheCodec> cache_codecs();           // in the order of CodecId

// Bytes of a whole page, and bits of one value with its scales.
size_t page_bytes(const CodecSpec& spec, int width);
double bits_per_value(const CodecSpec& spec);

}  // namespace kve
