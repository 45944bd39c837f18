#include "formats/cache_codecs.h"

#include <cstring>
#include <string_view>

#include "formats/cache/format_rows.h"

namespace kve {
namespace {

int outliers_of(int percent, int group) {
  if (percent == 0) return 0;
  const int nearest = static_cast<int>((int64_t{group} * percent + 50) / 100);
  return nearest > 1 ? nearest : 1;
}

}  // namespace

PageFormat page_format(const CodecSpec& codec, int width, bool values) {
  PageFormat format{.id = codec.id, .width = width};
  if (codec.is_float()) return format;
  const int group = codec.group < 0 ? width : codec.group;
  format.coded = {.coding = codec.coding,
                  .per = codec.per,
                  .channels = codec.channels,
                  .values = values,
                  .group = group,
                  .width = width,
                  .outliers = outliers_of(codec.outliers, group)};
  return format;
}

size_t code_bytes(const PageFormat& format) {
  if (format.id == CodecId::coded) return page_offsets(format.coded).scales;
  return float_bytes(format.id, kPageTokens * static_cast<size_t>(format.width));
}

size_t scale_bytes(const PageFormat& format) {
  if (format.id != CodecId::coded) return 0;
  const PageOffsets at = page_offsets(format.coded);
  return at.end - at.scales;
}

size_t page_bytes(const PageFormat& format) { return code_bytes(format) + scale_bytes(format); }

size_t end_of_page(const PageFormat& format) { return (page_bytes(format) + 63) / 64 * 64; }

int rows_per_unit(const PageFormat& format) {
  return format.id == CodecId::coded ? rows_per_unit(format.coded) : 1;
}

size_t encode_scratch(const PageFormat& format) {
  return format.id == CodecId::coded ? encode_scratch(format.coded) : 0;
}

bool encode_rows(const PageFormat& format, const float* src, int64_t src_stride, std::byte* page,
                 int first_row, int n_rows, std::byte* scratch) {
  return encode_format_rows(format, src, src_stride, page, first_row, n_rows, scratch);
}

void decode_rows(const PageFormat& format, const std::byte* page, int first_row, int n_rows,
                 int first_channel, int n_channels, float* dst, int64_t dst_stride) {
  decode_format_rows(format, page, first_row, n_rows, first_channel, n_channels, dst, dst_stride);
}

void clear_rows(const PageFormat& format, std::byte* page, int n_rows) {
  if (format.id == CodecId::coded) return clear_rows(format.coded, page, n_rows);
  const size_t row = float_bytes(format.id, static_cast<size_t>(format.width));
  std::memset(page + row * static_cast<size_t>(n_rows), 0,
              row * static_cast<size_t>(kPageTokens - n_rows));
}

bool is_sound(const PageFormat& format, const std::byte* page) {
  return format.id != CodecId::coded || format.coded.outliers == 0 ||
         are_outliers_sound(format.coded, page);
}

std::string format_name(const PageFormat& format) {
  constexpr std::string_view kFloats[] = {"f32", "f16", "bf16"};
  // In the order of Coding.
  constexpr std::string_view kCodings[] = {"asym", "sym",    "q8_0",  "q5_1", "q5_0", "q4_1",
                                           "q4_0", "iq4_nl", "lloyd", "nf4",  "e4m3", "e5m2"};
  if (format.id != CodecId::coded) return std::string(kFloats[static_cast<size_t>(format.id)]);
  const GroupCoding& coding = format.coded.coding;
  std::string name(kCodings[static_cast<size_t>(coding.coding)]);
  const bool any_bits = coding.coding <= Coding::sym || coding.coding == Coding::lloyd;
  return any_bits ? name + std::to_string(coding.bits) : name;
}

double bits_per_value(const CodecSpec& codec, int head_dim, int row_width, bool values) {
  const int width = codec.group == kWholeRow ? row_width : head_dim;
  return 8.0 * static_cast<double>(page_bytes(page_format(codec, width, values))) /
         (kPageTokens * static_cast<double>(width));
}

}  // namespace kve
