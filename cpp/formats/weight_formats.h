// formats/ says how numbers become bytes: the weight types of GGUF files (weight/) and the codecs
// of the cache (cache/). No policy, no threads, no files.
//
// This header is the list of weight types at run time. Code that is compiled for one type includes
// that type's header from weight/ instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "formats/weight/code_group.h"

namespace kve {

// The numbers are those a GGUF file stores (enum ggml_type). Missing numbers were retired, or name
// types that are not stored in files (Q8_1).
enum class WeightType : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
};

// Byte pointers need no alignment. `n` counts values and is a multiple of block_values.
struct WeightFormat {
  WeightType type;
  std::string_view name;  // "Q4_K", as the gguf package spells it
  int block_values;
  int block_bytes;

  // Bit for bit the float32 values of gguf.quants.dequantize. Integers and doubles are rounded to
  // the nearest float.
  void (*decode)(const std::byte* src, float* dst, int64_t n);

  // Null for types that are only read. The caller checks that the values are finite: a NaN or an
  // infinity gives unspecified values for its block (F32, F16 and BF16 keep it). A magnitude whose
  // scale does not fit binary16 decodes to infinities or NaN, as with gguf. Never fails.
  void (*encode)(const float* src, std::byte* dst, int64_t n);

  // Null for types whose values are plain numbers (F*, BF16, I*). Groups of 32 values are counted
  // from the start of `row`.
  void (*unpack)(const std::byte* row, int64_t first_group, int64_t n_groups, CodeGroup* out);

  bool has_min;  // whether unpack can give a non-zero `min`
};

// Throws UnsupportedError for a number that is not in the list.
const WeightFormat& format(WeightType type);

// `ggml_type` is the number in the file; null when it is not in the list.
const WeightFormat* find_format(uint32_t ggml_type);

// Every type, in order of its number.
std::span<const WeightFormat> weight_formats();

// Bytes of `n_values` consecutive values. Throws FormatError when n_values is negative, not a
// multiple of the type's block, or needs more bytes than size_t counts.
size_t row_bytes(WeightType type, int64_t n_values);

}  // namespace kve
