// Attention over cached rows as they lie in device memory: pages of codes, of binary16 or of
// bfloat16, and binary16 sinks and tails, in one pass with an online softmax (FlashAttention, arXiv
// 2205.14135), for a few queries split over the rows (Flash-Decoding) and merged in order.
// Query heads that share a kv head are columns of the same products. Queries, rows and weights are
// rounded to binary16, the sums are binary32.
#pragma once

#include <string>

#include "base/span.h"
#include "formats/cache_codecs.h"
#include "kernels/backend.h"
#include "kernels/cuda/device.h"

namespace kve::cuda {

// What kernels need to know of a PageFormat.
struct SideFormat {
  bool coded = false;
  bool is_bf16 = false;  // rows of floats
  bool values = false;   // the rest: of codes
  bool by_token = false;
  bool log8 = false;
  bool has_zero = false;
  bool has_table = false;
  Coding coding = Coding::asym;
  int32_t bits = 0;
  int32_t group = 0;
  int32_t width = 0;  // values per row of a page
  uint32_t scales_at = 0;
  uint32_t zeros_at = 0;
  uint32_t zero_level = 0;  // twice, binary16: 1024 + the code of level 0
};

// Rows of one side of one kv head, oldest first, as in SideView: sinks, pages, tail.
struct SideRows {
  SideFormat format{};
  int32_t first_channel = 0;  // of this head in the rows of pages
  // Device memory, 16-byte aligned; all pages but the last are full.
  const std::byte* const* pages = nullptr;
  int32_t page_rows = 0;
  // Device memory, 8-byte aligned: binary16 rows, row_stride values apart.
  const uint16_t* sinks = nullptr;
  const uint16_t* tail = nullptr;
  int32_t row_stride = 0;
};
struct HeadRows {
  SideRows k;
  SideRows v;
  int32_t sink_rows = 0;
  int32_t n_rows = 0;
  int32_t first_row = 0;           // query i sees rows up to first_row + i
  const uint64_t* dead = nullptr;  // device memory, as in HeadView, or null
};

// Why these kernels cannot read pages of this format, of rows whose channels from first_channel on
// are a head's: a sentence; empty where they can.
std::string format_refusal(const PageFormat& format, int first_channel, int n_channels);
// Of a format that they can read.
SideFormat side_format(const PageFormat& format);

struct AttendJob {
  ConstMat q;                       // [n, n_heads * key_dim]
  const HeadRows* heads = nullptr;  // [n_kv_heads]
  int32_t most_rows = 0;            // the largest n_rows
  Mat out;                          // [n, n_heads * value_dim]
  float* log_sums = nullptr;        // as in AttendTask
};

// The same of shapes.
std::string attend_refusal(const AttendParams& params);
// Bytes of scratch memory on the device.
size_t attend_scratch(const AttendParams& params, int64_t n_queries, int64_t most_rows);
void attend(const AttendParams& params, const AttendJob& job, std::byte* scratch);

}  // namespace kve::cuda
