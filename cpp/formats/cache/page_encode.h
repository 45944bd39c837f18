// Codes a page of coded rows. Compiled for any processor (cache_codecs.cpp) and for each
// instruction set (kernels/), with the same bits.
#pragma once

#include "formats/cache/coded_page.h"
#include "formats/cache/encode_work.h"
#include "formats/cache/outliers.h"
#include "formats/cache/page_codes.h"
#include "formats/cache/page_params.h"
#include "formats/cache/row_groups.h"
#include "formats/cache/two_axis.h"

namespace kve {

// Copies rows to work.rows; false when one has a NaN or an infinity.
KVE_HD bool copy_rows(const float* src, int64_t src_stride, int n_rows, int width,
                      const EncodeWork& work) {
  uint32_t bad = 0;
  for (int r = 0; r < n_rows; ++r) {
    const float* from = src + r * src_stride;
    float* to = work.rows + r * work.stride;
    for (int c = 0; c < width; ++c) {
      bad |= static_cast<uint32_t>(!is_finite(from[c]));
      to[c] = from[c];
    }
    for (int64_t c = width; c < work.stride; ++c) to[c] = 0;
  }
  return bad == 0;
}

// Divides work.rows by the factors that two-axis normalisation gives to the axis which groups do
// not run along, and writes them to the page.
KVE_HD void take_factors_out(const CodedPage& page, const EncodeWork& work, std::byte* factors) {
  const int width = page.width;
  const bool of_tokens = page.per == Per::channel;
  find_two_axes(work.rows, kPageTokens, width, work.stride, kNormalisingRounds, work.channel,
                work.token, of_tokens ? Axis::tokens : Axis::channels, work.balance);
  float* factor = of_tokens ? work.token : work.channel;
  for (int i = 0; i < (of_tokens ? kPageTokens : width); ++i) {
    const uint16_t stored = saturate_to_half(factor[i]);
    write_u16(factors + 2 * i, stored);
    factor[i] = half_to_float(stored);
  }
  for (int r = 0; r < kPageTokens; ++r) {
    float* row = work.rows + r * work.stride;
    if (of_tokens) {
      for (int c = 0; c < width; ++c) row[c] /= work.token[r];
    } else {
      for (int c = 0; c < width; ++c) row[c] /= work.channel[c];
    }
  }
}

// Takes the mean of every channel out of work.rows and writes it to the page.
KVE_HD void take_means_out(const CodedPage& page, const EncodeWork& work, std::byte* factors) {
  for (int c = 0; c < page.width; ++c) {
    float* column = work.rows + c;
    double sum = 0;
    for (int r = 0; r < kPageTokens; ++r) sum += static_cast<double>(column[r * work.stride]);
    const uint16_t stored = saturate_to_half(static_cast<float>(sum / kPageTokens));
    write_u16(factors + 2 * c, stored);
    for (int r = 0; r < kPageTokens; ++r) column[r * work.stride] -= half_to_float(stored);
  }
}

// Groups along rows, one after the other.
KVE_HD PageCodes code_few_rows(const CodedPage& page, int first_row, int n_rows,
                               const EncodeWork& work, std::byte* data) {
  for (int r = 0; r < n_rows; ++r) {
    const float* row = work.rows + r * work.stride;
    uint8_t* codes = work.codes + r * work.stride;
    for (int c = 0; c < page.width; c += page.group) {
      const GroupParams params = encode_run(page.coding, row + c, page.group, codes + c);
      const size_t index = scale_index(page, first_row + r, c);
      put_params(page, &params, 1, index, index, data);
    }
    std::memset(codes + page.width, 0, static_cast<size_t>(work.stride - page.width));
  }
  return {work.codes, work.stride, 1};
}

// Rows as they were given: outliers are stored as they are there.
struct ExactRows {
  const float* data;
  int64_t stride;
};

// Groups along rows, of all tokens side by side.
KVE_HD PageCodes code_by_token(const CodedPage& page, int first_row, int n_rows,
                               const ExactRows& exact, const EncodeWork& work, std::byte* data) {
  if (2 * n_rows <= kVectorLanes && page.outliers == 0) {
    return code_few_rows(page, first_row, n_rows, work, data);
  }
  for (int r = 0; r < n_rows; ++r) {
    for (int c = 0; c < page.width; ++c) {
      work.turned[c * kPageTokens + r] = work.rows[r * work.stride + c];
    }
  }
  for (int c = 0; c < page.width; c += page.group) {
    GroupParams params[kPageTokens];
    const GroupBlock groups = {work.turned + c * kPageTokens, kPageTokens, page.group,
                               work.codes + c * kPageTokens, kPageTokens};
    const size_t index = scale_index(page, first_row, c);
    if (page.outliers > 0) {
      take_outliers(
          page,
          {work.turned + c * kPageTokens, kPageTokens, exact.data + c, 1, exact.stride, n_rows},
          index, work.sorted, data);
    }
    encode_groups(page.coding, groups, n_rows, params);
    put_params(page, params, n_rows, index, index, data);
  }
  std::memset(work.codes + page.width * kPageTokens, 0,
              static_cast<size_t>(work.stride - page.width) * kPageTokens);
  return {work.codes, 1, kPageTokens};
}

// Zeros of channels without bits: the means of their groups.
KVE_HD void put_means(const CodedPage& page, int first_row, int n_rows, const EncodeWork& work,
                      std::byte* data) {
  if (!has_zero(page.coding.coding)) return;
  std::byte* zeros = data + page_offsets(page).zeros;
  for (int c = coded_width(page); c < page.width; ++c) {
    for (int first = 0; first < n_rows; first += page.group) {
      double sum = 0;
      for (int i = first; i < first + page.group; ++i) {
        sum += static_cast<double>(work.rows[i * work.stride + c]);
      }
      const auto mean = static_cast<float>(sum / page.group);
      write_u16(zeros + 2 * zero_index(page, first_row + first, c), saturate_to_half(mean));
    }
  }
}

// The number of bits of a channel.
KVE_HD int bits_of_channel(const CodedPage& page, int channel) {
  return bits_of_strip(page, page.values ? channel / 16 * 4 : channel / 4);
}

// Codes channels from `c` on of one group of tokens, and returns how many.
KVE_HD int code_channels(const CodedPage& page, int c, int coded, const GroupBlock& groups,
                         GroupParams* params) {
  if (page.strip_bits != nullptr && page.coding.coding == Coding::asym) {
    // Lanes past the last channel code what is padding.
    uint8_t bits[kVectorLanes];
    const int n = coded - c < kVectorLanes ? coded - c : kVectorLanes;
    for (int l = 0; l < kVectorLanes; ++l) {
      bits[l] = static_cast<uint8_t>(bits_of_channel(page, c + (l < n ? l : n - 1)));
    }
    encode_mixed_ranges(page.coding, bits, groups, params);
    return n;
  }
  GroupCoding coding = page.coding;
  coding.bits = static_cast<uint8_t>(bits_of_channel(page, c));
  int n = 0;
  while (n < kPageTokens && c + n < coded && bits_of_channel(page, c + n) == coding.bits) ++n;
  encode_groups(coding, groups, n, params);
  return n;
}

// Groups along channels, of channels side by side.
KVE_HD PageCodes code_by_channel(const CodedPage& page, int first_row, int n_rows,
                                 const ExactRows& exact, const EncodeWork& work, std::byte* data) {
  const int coded = coded_width(page);
  for (int first = 0; first < n_rows; first += page.group) {
    if (page.outliers > 0) {
      take_outliers(page,
                    {work.rows + first * work.stride, work.stride,
                     exact.data + first * exact.stride, exact.stride, 1, coded},
                    scale_index(page, first_row + first, 0), work.sorted, data);
    }
    for (int c = 0; c < coded;) {
      GroupParams params[kPageTokens];
      const int64_t at = first * work.stride + c;
      const GroupBlock groups = {work.rows + at, work.stride, page.group, work.codes + at,
                                 work.stride};
      const int n = code_channels(page, c, coded, groups, params);
      put_params(page, params, n, scale_index(page, first_row + first, c),
                 zero_index(page, first_row + first, c), data);
      c += n;
    }
  }
  put_means(page, first_row, n_rows, work, data);
  for (int r = 0; r < n_rows; ++r) {
    std::memset(work.codes + r * work.stride + coded, 0, static_cast<size_t>(work.stride - coded));
  }
  return {work.codes, work.stride, 1};
}

// Codes rows [first_row, first_row + n_rows) of a page from `src` [n_rows, width] (row stride in
// floats). The range consists of whole units. False, with those rows undefined, when a value is NaN
// or infinite.
KVE_HD bool encode_page(const CodedPage& page, const float* src, int64_t src_stride,
                        std::byte* data, int first_row, int n_rows, std::byte* scratch) {
  const EncodeWork work(scratch, page);
  if (!copy_rows(src, src_stride, n_rows, page.width, work)) return false;
  std::byte* factors = data + page_offsets(page).factors;
  if (page.channels == Channels::centred) take_means_out(page, work, factors);
  if (page.channels == Channels::scaled) take_factors_out(page, work, factors);
  const ExactRows exact = {src, src_stride};
  const PageCodes codes = page.per == Per::token
                              ? code_by_token(page, first_row, n_rows, exact, work, data)
                              : code_by_channel(page, first_row, n_rows, exact, work, data);
  write_codes(page, codes, first_row, n_rows, data);
  clear_gaps(page, data);
  return true;
}

}  // namespace kve
