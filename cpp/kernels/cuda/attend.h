// Attention over cached rows as they lie in device memory: pages of codes or of floats, of rows as
// they are or in a basis, and binary16 sinks and tails, in one pass with an online softmax
// (FlashAttention, arXiv 2205.14135), for a few queries split over the rows (Flash-Decoding) and
// merged in order. Query heads that share a kv head are columns of the same products. Queries, rows
// and weights are rounded to binary16, the sums are binary32.
//
// Rows in a basis are never lifted: queries are turned to the anchor of a page and projected
// (attend_queries.h), and what values add up to is lifted once for each warp.
#pragma once

#include <string>

#include "base/span.h"
#include "formats/cache_codecs.h"
#include "kernels/backend.h"
#include "kernels/cuda/device.h"

namespace kve::cuda {

constexpr int kMostTiers = 4;  // of a side

// How rows of floats lie in pages.
enum class FloatKind : uint8_t { f16, bf16, f32 };

// What codes of a page are multiplied by, or what is added to them (formats/cache/coded_page.h).
enum class Factors : uint8_t { none, means, of_channels, of_tokens };

// What kernels need to know of a PageFormat.
struct SideFormat {
  bool coded = false;
  FloatKind floats = FloatKind::f16;  // of rows that are not
  bool values = false;                // the rest: of codes
  bool by_token = false;
  bool log8 = false;
  bool has_zero = false;
  bool has_table = false;
  Factors factors = Factors::none;
  Coding coding = Coding::asym;
  int32_t bits = 0;
  int32_t group = 0;
  int32_t width = 0;        // values per row of a page
  int32_t coded_width = 0;  // of which have codes
  uint32_t scales_at = 0;
  uint32_t zeros_at = 0;
  uint32_t factors_at = 0;
  uint32_t zero_level = 0;  // twice, binary16: 1024 + the code of level 0
  // Device memory, [strips + 1]: sums of the bits of the strips before, which differ; else null.
  const uint16_t* strip_bits = nullptr;
};

// How rows become coefficients, as in BasisView; of device memory. block 0: they stay as they are.
struct SideBasis {
  int32_t block = 0;
  int32_t block_width = 0;
  const uint16_t* lift = nullptr;
  const int8_t* lift8 = nullptr;
  const float* lift8_scale = nullptr;
  // Queries are multiplied by the one before they are projected and scores by the other after that,
  // so that what is between is neither too large nor too small for binary16.
  float query_factor = 1;
  float score_factor = 1;
  const float* angles = nullptr;  // of all anchors (rotations.h), null: rows are not turned
  int32_t n_pairs = 0;
  bool interleaved = false;
};

// How a page is written; those of a side differ in tier and in basis.
struct PageKind {
  SideFormat format{};
  SideBasis basis{};
};

// A page in device memory, 16-byte aligned.
struct PagePlace {
  const std::byte* data = nullptr;
  int32_t kind = 0;
  int32_t anchor = 0;  // its row of angles
  bool operator==(const PagePlace&) const = default;
};

// Rows of one side of one kv head, oldest first, as in SideView: sinks, pages, tail.
struct SideRows {
  // Of the head in a page: values, or coefficients where it is in a basis.
  int32_t first_channel = 0;
  int32_t n_channels = 0;
  const PageKind* kinds = nullptr;   // device memory
  int32_t n_tiers = 0;               // the first kinds, whose formats the others have in turns
  bool in_basis = false;             // the rows of pages
  const PagePlace* pages = nullptr;  // device memory; all pages but the last are full
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
  int32_t first_row = 0;               // query i sees rows up to first_row + i
  const uint64_t* dead = nullptr;      // device memory, as in HeadView, or null
  const int32_t* positions = nullptr;  // the same; needed for linear biases
};

// Why these kernels cannot read pages of this format, of rows whose channels from first_channel on
// are a head's: a sentence; empty where they can.
std::string format_refusal(const PageFormat& format, int first_channel, int n_channels);
// The same of all pages of a side.
std::string side_refusal(const SideView& side);
// Of a format that they can read; SideFormat::strip_bits is for the caller.
SideFormat side_format(const PageFormat& format);

// What of the kernels the sides of a task need.
struct ReadNeeds {
  bool bases = false;
  bool several_lifts = false;  // of a side of values
  int32_t key_numbers = 0;     // the most channels of a page
  int32_t value_numbers = 0;
};

struct AttendJob {
  ConstMat q;                       // [n, n_heads * key_dim]
  const HeadRows* heads = nullptr;  // [n_kv_heads]
  int32_t most_rows = 0;            // the largest n_rows
  ReadNeeds needs{};
  const float* alibi = nullptr;  // [n_heads] device memory, as in AttendParams
  Mat out;                       // [n, n_heads * value_dim]
  float* log_sums = nullptr;     // as in AttendTask
};

// The same of shapes.
std::string attend_refusal(const AttendParams& params);
// Bytes of memory that a block asks for (Device::block_memory()).
size_t attend_shared(const AttendParams& params, const ReadNeeds& needs, int64_t n_queries);
// Bytes of scratch memory on the device.
size_t attend_scratch(const AttendParams& params, int64_t n_queries, int64_t most_rows);
void attend(const AttendParams& params, const AttendJob& job, std::byte* scratch);

// The weights that queries give rows, as Backend::attention_mass().
struct MassJob {
  MassOf what = MassOf::sum;
  ConstMat q;                       // [n, n_heads * key_dim]
  const HeadRows* heads = nullptr;  // [n_kv_heads]
  int32_t most_rows = 0;            // the largest n_rows
  ReadNeeds needs{};
  const float* alibi = nullptr;
  const float* log_sums = nullptr;  // [n, n_heads]
  float* mass = nullptr;            // [n_kv_heads][most_rows]
};
size_t mass_shared(const AttendParams& params, const ReadNeeds& needs);
void attention_mass(const AttendParams& params, const MassJob& job);

}  // namespace kve::cuda
