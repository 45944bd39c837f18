// Pages against a plain composition of their parts: groups coded one by one (which the goldens of
// group_code_test.cpp cover), codes written one by one (strips_test.cpp).
#include "formats/cache/coded_page.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "formats/cache/page_testing.h"
#include "formats/cache/two_axis.h"

namespace kve::testing {
namespace {

// Every way to lay out a page of `coding`.
std::vector<CodedPage> all_pages(const GroupCoding& coding) {
  std::vector<CodedPage> out;
  for (const int width : {16, 36, 64, 80, 96, 128, 256}) {
    for (const Per per : {Per::token, Per::channel}) {
      for (const int group : {8, 16, 20, 32, 64, 128, width}) {
        if ((per == Per::token ? width : kPageTokens) % group != 0) continue;
        for (const Channels channels : {Channels::plain, Channels::centred, Channels::scaled}) {
          for (const bool values : {false, true}) {
            out.push_back({.coding = coding,
                           .per = per,
                           .channels = channels,
                           .values = values,
                           .group = group,
                           .width = width});
          }
        }
      }
    }
  }
  return out;
}

// A few of them for every coding.
std::vector<CodedPage> pages_of_all_codings() {
  std::vector<CodedPage> out;
  for (const GroupCoding& coding : all_codings()) {
    for (const bool values : {false, true}) {
      for (const Per per : {Per::token, Per::channel}) {
        out.push_back({.coding = coding, .per = per, .values = values, .group = 32, .width = 96});
      }
    }
  }
  return out;
}

// Pages whose strips have different numbers of bits.
std::vector<CodedPage> pages_of_strips() {
  static constexpr uint8_t kKeys[] = {8, 8, 7, 6, 6, 5, 4, 4, 4, 3, 3, 2, 1, 1, 0, 0};
  static constexpr uint8_t kValues[] = {8, 8, 8, 8, 5, 5, 5, 5, 3, 3, 3, 3, 0, 0, 0, 0};
  static constexpr uint8_t kFewBits[] = {4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2};
  static constexpr uint8_t kNone[16] = {};
  std::vector<CodedPage> out;
  const auto add = [&](const GroupCoding& coding, bool values, int width, const uint8_t* bits) {
    for (const int group : {16, 64}) {
      out.push_back({.coding = coding,
                     .per = Per::channel,
                     .values = values,
                     .group = group,
                     .width = width,
                     .strip_bits = bits});
    }
  };
  for (const ScaleFormat scale : {ScaleFormat::half, ScaleFormat::log8}) {
    for (const Fit fit : {Fit::range, Fit::search}) {
      const GroupCoding coding = make_coding(Coding::asym, 8, fit, scale);
      for (const int width : {50, 64}) add(coding, false, width, kKeys);
      for (const int width : {50, 64}) add(coding, true, width, kValues);
      add(coding, false, 64, kNone);
    }
  }
  for (const bool values : {false, true}) {
    add(make_coding(Coding::sym, 4), values, 64, kFewBits);
    add(make_coding(Coding::lloyd, 4, Fit::norm), values, 64, kFewBits);
  }
  return out;
}

// Everything above, one coding in all layouts.
std::vector<CodedPage> many_pages(const GroupCoding& coding) {
  std::vector<CodedPage> out = all_pages(coding);
  for (const CodedPage& page : pages_of_all_codings()) out.push_back(page);
  for (const CodedPage& page : pages_of_strips()) out.push_back(page);
  return out;
}

std::vector<float> page_values(int width, uint64_t seed) {
  std::vector<float> rows = normal_values(static_cast<size_t>(kPageTokens * width), seed);
  for (int r = 0; r < kPageTokens; ++r) {
    for (int c = 0; c < width; ++c) {
      float& value = rows[static_cast<size_t>(r * width + c)];
      value = value * (1 + 0.2f * static_cast<float>(c % 5)) + static_cast<float>(c % 3);
      if (c == 7) value *= 20;
      if (r == 9) value *= 3;
    }
  }
  return rows;
}

// The bytes of a page by its description in coded_page.h.
class PlainPage {
 public:
  PlainPage(const CodedPage& page, std::vector<float> rows)
      : page_(page), rows_(std::move(rows)), at_(page_offsets(page)), data_(at_.end) {
    take_channels_out();
    const bool by_token = page_.per == Per::token;
    const int lines = by_token ? kPageTokens : page_.width;
    const int along = by_token ? page_.width : kPageTokens;
    for (int line = 0; line < lines; ++line) {
      for (int first = 0; first < along; first += page_.group) code_group(line, first);
    }
  }
  const Bytes& bytes() const { return data_; }

 private:
  float& at(int r, int c) { return rows_[static_cast<size_t>(r * page_.width + c)]; }

  void take_channels_out() {
    if (page_.channels == Channels::plain) return;
    const int width = page_.width;
    std::vector<float> channel(static_cast<size_t>(width));
    std::vector<float> token(kPageTokens);
    const bool of_tokens = page_.channels == Channels::scaled && page_.per == Per::channel;
    if (page_.channels == Channels::scaled) {
      std::vector<float> scratch(two_axes_scratch(kPageTokens, width));
      find_two_axes(rows_.data(), kPageTokens, width, width, 16, channel.data(), token.data(),
                    of_tokens ? Axis::tokens : Axis::channels, scratch.data());
    } else {
      for (int c = 0; c < width; ++c) {
        double sum = 0;
        for (int r = 0; r < kPageTokens; ++r) sum += double{at(r, c)};
        channel[static_cast<size_t>(c)] = static_cast<float>(sum / kPageTokens);
      }
    }
    std::vector<float>& factors = of_tokens ? token : channel;
    for (size_t i = 0; i < factors.size(); ++i) {
      const uint16_t stored = saturate_to_half(factors[i]);
      write_u16(data_.data() + at_.factors + 2 * i, stored);
      factors[i] = half_to_float(stored);
    }
    for (int r = 0; r < kPageTokens; ++r) {
      for (int c = 0; c < width; ++c) {
        const float factor = factors[static_cast<size_t>(of_tokens ? r : c)];
        at(r, c) = page_.channels == Channels::scaled ? at(r, c) / factor : at(r, c) - factor;
      }
    }
  }

  void code_group(int line, int first) {
    const bool by_token = page_.per == Per::token;
    std::vector<float> x;
    for (int i = first; i < first + page_.group; ++i) {
      x.push_back(by_token ? at(line, i) : at(i, line));
    }
    const int token = by_token ? line : first;
    const int channel = by_token ? first : line;
    GroupCoding coding = page_.coding;
    if (page_.strip_bits != nullptr) coding.bits = bits_at(channel);
    const size_t zero = at_.zeros + 2 * zero_index(page_, token, channel);
    if (coding.bits == 0) {
      double sum = 0;
      for (const float value : x) sum += double{value};
      write_u16(data_.data() + zero,
                saturate_to_half(static_cast<float>(sum / static_cast<double>(x.size()))));
      return;
    }
    const Group group(coding, x);
    const size_t scale = scale_index(page_, token, channel);
    if (page_.coding.scale == ScaleFormat::log8) {
      data_[at_.scales + scale] = static_cast<std::byte>(group.params.scale);
    } else {
      write_u16(data_.data() + at_.scales + 2 * scale, group.params.scale);
    }
    if (has_zero(coding.coding)) write_u16(data_.data() + zero, group.params.zero);
    for (int i = 0; i < page_.group; ++i) {
      const int t = by_token ? token : first + i;
      const int c = by_token ? first + i : channel;
      const StripPlace place = page_.values ? value_place(t, c) : key_place(t, c);
      size_t strip = 0;
      for (int s = 0; s < place.strip; ++s) strip += strip_bytes(bits_of_strip(page_, s));
      write_code(data_.data() + strip, coding.bits, place, group.codes[static_cast<size_t>(i)]);
    }
  }

  uint8_t bits_at(int channel) const {
    return page_.strip_bits[page_.values ? channel / 16 * 4 : channel / 4];
  }

  CodedPage page_;
  std::vector<float> rows_;
  PageOffsets at_;
  Bytes data_;
};

TEST(CodedPage, BytesAreThoseOfGroupsCodedOneByOne) {
  for (const CodedPage& page : many_pages(make_coding(Coding::asym, 3))) {
    const std::vector<float> rows = page_values(page.width, 3);
    EXPECT_EQ(encode(page, rows), PlainPage(page, rows).bytes()) << page_name(page);
  }
}

// Bytes that nobody writes would differ between equal caches.
TEST(CodedPage, EveryByteIsWritten) {
  std::vector<CodedPage> pages =
      many_pages(make_coding(Coding::asym, 3, Fit::range, ScaleFormat::log8));
  // 37 scales of one byte.
  pages.push_back({.coding = pages[0].coding, .per = Per::channel, .group = 64, .width = 37});
  for (const CodedPage& page : pages) {
    const std::vector<float> rows = page_values(page.width, 4);
    EXPECT_EQ(encode(page, rows, std::byte{0x00}), encode(page, rows, std::byte{0xff}))
        << page_name(page);
  }
}

// The definition in coded_page.h, code by code. Scaling is exact but for one rounding each.
TEST(CodedPage, ValuesAreScaleTimesLevelPlusZero) {
  for (const CodedPage& page : many_pages(make_coding(Coding::asym, 4))) {
    const Bytes data = encode(page, page_values(page.width, 11));
    const std::vector<float> decoded = decode(page, data);
    const PageOffsets at = page_offsets(page);
    for (int t = 0; t < kPageTokens; ++t) {
      for (int c = 0; c < page.width; ++c) {
        const StripPlace place = page.values ? value_place(t, c) : key_place(t, c);
        const int bits = bits_of_strip(page, place.strip);
        float value = 0;
        if (bits > 0) {
          size_t strip = 0;
          for (int s = 0; s < place.strip; ++s) strip += strip_bytes(bits_of_strip(page, s));
          const size_t index = scale_index(page, t, c);
          const uint16_t scale = page.coding.scale == ScaleFormat::log8
                                     ? static_cast<uint16_t>(data[at.scales + index])
                                     : read_u16(data.data() + at.scales + 2 * index);
          value = decode_scale(page.coding.scale, scale) *
                  level(page.coding.coding, bits, read_code(data.data() + strip, bits, place));
        }
        if (has_zero(page.coding.coding)) {
          value += half_to_float(read_u16(data.data() + at.zeros + 2 * zero_index(page, t, c)));
        }
        const bool of_token = page.channels == Channels::scaled && page.per == Per::channel;
        const std::byte* factor = data.data() + at.factors + 2 * (of_token ? t : c);
        if (page.channels == Channels::scaled) value *= half_to_float(read_u16(factor));
        if (page.channels == Channels::centred) value += half_to_float(read_u16(factor));
        ASSERT_EQ(decoded[static_cast<size_t>(t * page.width + c)], value) << page_name(page);
      }
    }
  }
}

// A value is within half a step of what it decodes to, after what binary16 loses of the range's
// ends: 2^-11 of the largest magnitude, for each of zero and scale.
TEST(CodedPage, ValuesComeBackWithinHalfAStep) {
  for (const int bits : {1, 2, 4, 7, 8}) {
    for (const CodedPage& page : all_pages(make_coding(Coding::asym, bits))) {
      const std::vector<float> rows = page_values(page.width, 5);
      const Bytes data = encode(page, rows);
      const std::vector<float> decoded = decode(page, data);
      const PageOffsets at = page_offsets(page);
      double total = 0;
      for (int r = 0; r < kPageTokens; ++r) {
        for (int c = 0; c < page.width; ++c) {
          const auto i = static_cast<size_t>(r * page.width + c);
          const float scale =
              half_to_float(read_u16(data.data() + at.scales + 2 * scale_index(page, r, c)));
          float factor = 1;
          float largest = 100;  // of all values and of what centring leaves
          if (page.channels == Channels::scaled) {
            const int line = page.per == Per::channel ? r : c;
            factor = half_to_float(read_u16(data.data() + at.factors + 2 * line));
            largest = 200;  // factors are at least e^-0.3
          }
          const float allowed = factor * (0.501f * scale + 0x1p-10f * largest);
          ASSERT_NEAR(decoded[i], rows[i], allowed) << page_name(page);
          total += double{scale};
        }
      }
      EXPECT_GT(total, 0) << page_name(page);
    }
  }
}

TEST(CodedPage, UnitsOfRowsGiveTheBytesOfThePage) {
  for (const CodedPage& page : many_pages(make_coding(Coding::asym, 5))) {
    if (rows_per_unit(page) == kPageTokens) continue;
    const int stride = page.width + 3;
    const std::vector<float> rows = page_values(page.width, 6);
    Bytes parts(page_offsets(page).end);
    Bytes scratch(encode_scratch(page));
    // Backwards, in pieces, from a source with a wider stride.
    for (int first = kPageTokens; first > 0;) {
      const int n = std::min(first, rows_per_unit(page) == 1 ? 7 : rows_per_unit(page));
      first -= n;
      std::vector<float> wide(static_cast<size_t>(n * stride),
                              std::numeric_limits<float>::quiet_NaN());
      for (int r = 0; r < n; ++r) {
        std::copy_n(rows.begin() + (first + r) * page.width, page.width, wide.begin() + r * stride);
      }
      ASSERT_TRUE(encode_page(page, wide.data(), stride, parts.data(), first, n, scratch.data()));
    }
    EXPECT_EQ(parts, encode(page, rows)) << page_name(page);
  }
}

TEST(CodedPage, PartsOfRowsDecodeAsTheWhole) {
  for (const CodedPage& page : many_pages(make_coding(Coding::asym, 6))) {
    const Bytes data = encode(page, page_values(page.width, 7));
    const std::vector<float> whole = decode(page, data);
    const struct {
      int first_row, n_rows, first_channel, n_channels;
    } parts[] = {{0, 1, 0, 1}, {17, 30, 3, 9}, {5, 59, 15, page.width - 15}, {63, 1, 8, 8}};
    for (const auto& part : parts) {
      const int stride = part.n_channels + 2;
      std::vector<float> out(static_cast<size_t>(part.n_rows * stride), -7.0f);
      decode_page(page, data.data(), part.first_row, part.n_rows, part.first_channel,
                  part.n_channels, out.data(), stride);
      for (int r = 0; r < part.n_rows; ++r) {
        const float* row = out.data() + r * stride;
        for (int c = 0; c < part.n_channels; ++c) {
          ASSERT_EQ(row[c], whole[static_cast<size_t>((part.first_row + r) * page.width +
                                                      part.first_channel + c)])
              << page_name(page);
        }
        ASSERT_EQ(row[part.n_channels], -7.0f) << page_name(page);
      }
    }
  }
}

TEST(CodedPage, BytesAreTheStatedBits) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (const ScaleFormat scale : {ScaleFormat::half, ScaleFormat::log8}) {
      for (const CodedPage& page : all_pages(make_coding(Coding::asym, bits, Fit::range, scale))) {
        // Padding to whole strips is only of widths that are no multiple of 16.
        const int padded = page.values ? (page.width + 15) / 16 * 16 : page.width;
        double total = 64.0 * padded * bits;
        const double scale_bits = scale == ScaleFormat::log8 ? 8 : 16;
        total += 64.0 * page.width / page.group * (scale_bits + 16);
        const bool of_tokens = page.channels == Channels::scaled && page.per == Per::channel;
        if (page.channels != Channels::plain) total += 16 * (of_tokens ? 64 : page.width);
        EXPECT_EQ(8 * page_offsets(page).end, total) << page_name(page);
        const PageOffsets at = page_offsets(page);
        EXPECT_LT(at.scales, at.zeros);
        EXPECT_LT(at.zeros, at.factors);
      }
    }
  }
}

TEST(CodedPage, ClearedRowsAreEqualInAllPages) {
  for (const CodedPage& page : many_pages(make_coding(Coding::asym, 3))) {
    const int unit = rows_per_unit(page);
    const int n_rows = unit == 1 ? 37 : unit == kPageTokens ? 0 : kPageTokens - unit;
    std::vector<float> rows = page_values(page.width, 8);
    Bytes first = encode(page, rows);
    const std::vector<float> whole = decode(page, first);
    std::vector<float> other = page_values(page.width, 9);
    std::copy_n(rows.begin(), n_rows * page.width, other.begin());
    Bytes second = encode(page, other);
    clear_rows(page, first.data(), n_rows);
    clear_rows(page, second.data(), n_rows);
    EXPECT_EQ(first, second) << page_name(page);
    const std::vector<float> kept = decode(page, first);
    EXPECT_TRUE(std::equal(kept.begin(), kept.begin() + n_rows * page.width, whole.begin()))
        << page_name(page);
  }
}

TEST(CodedPage, NonFiniteValuesAreRefusedWhereverTheyStand) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const CodedPage& page : all_pages(make_coding(Coding::asym, 2))) {
    const std::vector<float> rows = page_values(page.width, 10);
    Bytes data(page_offsets(page).end);
    Bytes scratch(encode_scratch(page));
    for (const float bad : {kNan, -kNan, kInf, -kInf}) {
      for (const size_t at : {size_t{0}, rows.size() / 2 + 3, rows.size() - 1}) {
        std::vector<float> broken = rows;
        broken[at] = bad;
        EXPECT_FALSE(encode_page(page, broken.data(), page.width, data.data(), 0, kPageTokens,
                                 scratch.data()))
            << page_name(page);
      }
    }
  }
}

TEST(CodedPage, ExtremePagesDecodeToFiniteValues) {
  constexpr float kMost = std::numeric_limits<float>::max();
  constexpr float kLeast = std::numeric_limits<float>::denorm_min();
  for (const Channels channels : {Channels::plain, Channels::centred, Channels::scaled}) {
    for (CodedPage page : pages_of_all_codings()) {
      page.channels = channels;
      for (const auto& [a, b] : {std::pair{kMost, -kMost},
                                 {kMost, 1.0f},
                                 {kLeast, -kLeast},
                                 {0.0f, 0.0f},
                                 {1e20f, 0.0f},
                                 {-65520.0f, 65520.0f}}) {
        std::vector<float> rows(static_cast<size_t>(kPageTokens * page.width), b);
        for (size_t i = 0; i < rows.size(); i += 5) rows[i] = a;
        for (const float value : decode(page, encode(page, rows))) {
          ASSERT_TRUE(std::isfinite(value)) << page_name(page) << " of " << a << " and " << b;
        }
      }
    }
  }
}

}  // namespace
}  // namespace kve::testing
