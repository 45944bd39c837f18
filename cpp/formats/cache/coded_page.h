// A page of coded rows: strips of codes (strips.h), then the scales, zeros and factors that turn
// them into values:
//   value[t][c] = scale * level[code] + zero              channels = plain
//   value[t][c] = scale * level[code] + zero + factor[c]  channels = centred
//   value[t][c] = factor * (scale * level[code] + zero)   channels = scaled
// A group of values shares a scale and, where the coding has one, a zero: with Per::token `group`
// consecutive channels of one token, with Per::channel `group` consecutive tokens of one channel.
// The factor of scaled pages belongs to the other axis: to channel c with Per::token, else to token
// t.
//
// A page may keep some outliers of every group as they are (outliers.h): their values replace those
// above.
//
// Bytes: codes | scales | zeros (binary16) | factors (binary16, [width] or [64 tokens]) | outliers
// (binary16) | their places in their groups (one byte each, two where groups are longer than 256).
// Scales and zeros are [width / group][64 tokens] with Per::token and [64 / group][width] with
// Per::channel; outliers are [outliers of a group], each like the scales. Where bits differ between
// strips they fall, and channels without bits have a zero but no scale and no outliers.
// page_encode.h writes a page and page_decode.h reads it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/cache/codec_math.h"
#include "formats/cache/group_code.h"
#include "formats/cache/strips.h"

namespace kve {

enum class Per : uint8_t { token, channel };
// What is taken out of a page before groups are coded.
enum class Channels : uint8_t {
  plain,
  centred,  // the mean over the page's tokens of each channel
  scaled,   // two-axis normalisation (two_axis.h); the factors of one axis enter scales and zeros
};

struct CodedPage {
  GroupCoding coding{};
  Per per = Per::token;
  Channels channels = Channels::plain;
  bool values = false;  // strips of values, else of keys
  int32_t group = 0;
  int32_t width = 0;                    // values per row
  int32_t outliers = 0;                 // of a group; fewer than half of it
  const uint8_t* strip_bits = nullptr;  // [n_strips] falling; null: all have coding.bits
};

// A run of rows that is coded together: all groups of a page lie within one.
KVE_HD int rows_per_unit(const CodedPage& page) {
  if (page.channels != Channels::plain) return kPageTokens;
  return page.per == Per::channel ? page.group : 1;
}

KVE_HD int n_strips(const CodedPage& page) {
  return page.values ? value_strips(page.width) : key_strips(page.width);
}
KVE_HD int bits_of_strip(const CodedPage& page, int strip) {
  return page.strip_bits == nullptr ? page.coding.bits : page.strip_bits[strip];
}
// Channels that have codes; the others lie behind them.
KVE_HD int coded_width(const CodedPage& page) {
  if (page.strip_bits == nullptr) return page.width;
  const int per_strip = page.values ? 16 : 4;
  int strips = 0;
  while (strips < n_strips(page) && page.strip_bits[strips] > 0) ++strips;
  const int channels = page.values ? strips / 4 * per_strip : strips * per_strip;
  return channels < page.width ? channels : page.width;
}

KVE_HD size_t scale_size(const CodedPage& page) {
  return page.coding.scale == ScaleFormat::log8 ? 1 : 2;
}
// Entries of the arrays of scales and of zeros.
KVE_HD size_t n_scales(const CodedPage& page) {
  return page.per == Per::token ? static_cast<size_t>(page.width / page.group) * kPageTokens
                                : static_cast<size_t>(kPageTokens / page.group * coded_width(page));
}
KVE_HD size_t n_zeros(const CodedPage& page) {
  if (!has_zero(page.coding.coding)) return 0;
  return page.per == Per::token ? n_scales(page)
                                : static_cast<size_t>(kPageTokens / page.group * page.width);
}

KVE_HD size_t n_factors(const CodedPage& page) {
  if (page.channels == Channels::plain) return 0;
  const bool of_tokens = page.channels == Channels::scaled && page.per == Per::channel;
  return of_tokens ? kPageTokens : static_cast<size_t>(page.width);
}

KVE_HD size_t n_outliers(const CodedPage& page) {
  return static_cast<size_t>(page.outliers) * n_scales(page);
}
KVE_HD size_t place_size(const CodedPage& page) { return page.group > 256 ? 2 : 1; }

// Byte offsets within a page.
struct PageOffsets {
  size_t scales;
  size_t zeros;
  size_t factors;
  size_t outliers;
  size_t places;
  size_t end;  // a multiple of 4
};
KVE_HD PageOffsets page_offsets(const CodedPage& page) {
  PageOffsets at{};
  for (int s = 0; s < n_strips(page); ++s) at.scales += strip_bytes(bits_of_strip(page, s));
  at.zeros = at.scales + (n_scales(page) * scale_size(page) + 1) / 2 * 2;
  at.factors = at.zeros + 2 * n_zeros(page);
  at.outliers = at.factors + 2 * n_factors(page);
  at.places = at.outliers + 2 * n_outliers(page);
  at.end = (at.places + place_size(page) * n_outliers(page) + 3) / 4 * 4;
  return at;
}

// Zeroes what lies between the parts of a page, so that equal pages have equal bytes.
KVE_HD void clear_gaps(const CodedPage& page, std::byte* data) {
  const PageOffsets at = page_offsets(page);
  for (size_t i = at.scales + n_scales(page) * scale_size(page); i < at.zeros; ++i) {
    data[i] = std::byte{0};
  }
  for (size_t i = at.places + place_size(page) * n_outliers(page); i < at.end; ++i) {
    data[i] = std::byte{0};
  }
}

// Where the scale and the zero of a value stand in their arrays.
KVE_HD size_t scale_index(const CodedPage& page, int token, int channel) {
  return page.per == Per::token
             ? static_cast<size_t>(channel / page.group * kPageTokens + token)
             : static_cast<size_t>(token / page.group * coded_width(page) + channel);
}
KVE_HD size_t zero_index(const CodedPage& page, int token, int channel) {
  return page.per == Per::token ? static_cast<size_t>(channel / page.group * kPageTokens + token)
                                : static_cast<size_t>(token / page.group * page.width + channel);
}

// Outlier number `entry` of a page; `at`: page_offsets(page).
KVE_HD void write_outlier(const CodedPage& page, const PageOffsets& at, size_t entry, int place,
                          uint16_t value, std::byte* data) {
  write_u16(data + at.outliers + 2 * entry, value);
  std::byte* to = data + at.places + place_size(page) * entry;
  if (place_size(page) == 2) return write_u16(to, static_cast<uint16_t>(place));
  *to = static_cast<std::byte>(place);
}
KVE_HD float outlier_value(const PageOffsets& at, size_t entry, const std::byte* data) {
  return half_to_float(read_u16(data + at.outliers + 2 * entry));
}
KVE_HD int outlier_place(const CodedPage& page, const PageOffsets& at, size_t entry,
                         const std::byte* data) {
  const std::byte* from = data + at.places + place_size(page) * entry;
  return place_size(page) == 2 ? read_u16(from) : static_cast<int>(*from);
}

// Makes the rows from `n_rows` on, which nobody shows, equal in all pages.
void clear_rows(const CodedPage& page, std::byte* data, int n_rows);

}  // namespace kve
