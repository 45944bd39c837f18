// Outliers of pages against a plain choice in float64: every value of a group, ordered by its
// distance from the middle.
#include "formats/cache/outliers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "formats/cache/page_testing.h"

namespace kve::testing {
namespace {

// Codings of every kind, in every layout.
std::vector<CodedPage> all_pages() {
  static constexpr uint8_t kKeys[] = {8, 8, 7, 6, 6, 5, 4, 4, 4, 3, 3, 2, 1, 1, 0, 0};
  std::vector<CodedPage> out;
  for (const GroupCoding& coding :
       {make_coding(Coding::asym, 3), make_coding(Coding::asym, 2, Fit::search, ScaleFormat::log8),
        make_coding(Coding::sym, 4), make_coding(Coding::nf4, 4),
        make_coding(Coding::lloyd, 3, Fit::energy), make_coding(Coding::e4m3, 8)}) {
    for (const int width : {16, 36, 64, 80}) {
      for (const Per per : {Per::token, Per::channel}) {
        for (const int group : {8, 16, 32, 64, width}) {
          if ((per == Per::token ? width : kPageTokens) % group != 0) continue;
          for (const int outliers : {1, 2, 3}) {
            for (const bool values : {false, true}) {
              out.push_back({.coding = coding,
                             .per = per,
                             .values = values,
                             .group = group,
                             .width = width,
                             .outliers = outliers});
            }
          }
        }
      }
    }
  }
  out.push_back({.coding = make_coding(Coding::asym, 8, Fit::search),
                 .per = Per::channel,
                 .group = 64,
                 .width = 64,
                 .outliers = 2,
                 .strip_bits = kKeys});
  // Places of two bytes.
  out.push_back(
      {.coding = make_coding(Coding::asym, 2), .group = 320, .width = 320, .outliers = 9});
  return out;
}

// Half of the rows have values that are rounded, so that many are equal.
std::vector<float> page_values(int width, uint64_t seed) {
  std::vector<float> rows = normal_values(static_cast<size_t>(kPageTokens * width), seed);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i % 29 == 5) rows[i] *= 30;
    if (i / static_cast<size_t>(width) % 2 == 1) rows[i] = std::round(rows[i]);
  }
  return rows;
}

// What memory holds before a page is written: every byte of a page must be.
constexpr std::byte kDirty{0xff};

// A group of a page, as places in its rows.
struct Line {
  size_t index;  // as scale_index()
  std::vector<size_t> at;
};

std::vector<Line> lines_of(const CodedPage& page) {
  std::vector<Line> out;
  const bool by_token = page.per == Per::token;
  for (int line = 0; line < (by_token ? kPageTokens : coded_width(page)); ++line) {
    for (int first = 0; first < (by_token ? page.width : kPageTokens); first += page.group) {
      Line& added = out.emplace_back();
      added.index = by_token ? scale_index(page, line, first) : scale_index(page, first, line);
      for (int i = first; i < first + page.group; ++i) {
        added.at.push_back(
            static_cast<size_t>(by_token ? line * page.width + i : i * page.width + line));
      }
    }
  }
  return out;
}

// The places of the outliers in a group, and what is to stand there instead.
struct Choice {
  std::vector<int> places;
  double stand_in = 0;
};

Choice choose(const CodedPage& page, const std::vector<double>& x) {
  std::vector<double> sorted = x;
  std::ranges::sort(sorted);
  const size_t n = x.size();
  const bool zero = has_zero(page.coding.coding);
  const double middle = zero ? (sorted[(n - 1) / 2] + sorted[n / 2]) / 2 : 0;
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) {
    const double x_a = x[static_cast<size_t>(a)];
    const double x_b = x[static_cast<size_t>(b)];
    const double far_a = std::abs(x_a - middle);
    const double far_b = std::abs(x_b - middle);
    return far_a != far_b ? far_a > far_b : x_a > x_b;
  });
  Choice out;
  out.places.assign(order.begin(), order.begin() + page.outliers);
  std::ranges::sort(out.places);
  double squares = 0;
  for (auto i = static_cast<size_t>(page.outliers); i < n; ++i) {
    const double value = x[static_cast<size_t>(order[i])];
    squares += value * value;
  }
  const double rest = static_cast<double>(n) - page.outliers;
  // The median is always among what stays: fewer than half go.
  out.stand_in = zero                                  ? middle + 0.0
                 : page.coding.coding == Coding::lloyd ? std::sqrt(squares / rest)
                                                       : 0;
  return out;
}

TEST(Outliers, AreTheFarthestValuesAndAllElseIsCodedWithoutThem) {
  int cases = 0;
  for (const CodedPage& page : all_pages()) {
    SCOPED_TRACE(page_name(page));
    const std::vector<float> rows = page_values(page.width, 3);
    const Bytes data = encode(page, rows, kDirty);
    const std::vector<float> decoded = decode(page, data);
    const PageOffsets at = page_offsets(page);
    std::vector<float> rest = rows;
    std::vector<bool> kept(rows.size());
    for (const Line& line : lines_of(page)) {
      std::vector<double> x;
      for (const size_t i : line.at) x.push_back(double{rows[i]});
      const Choice choice = choose(page, x);
      for (size_t e = 0; e < choice.places.size(); ++e) {
        const size_t entry = e * n_scales(page) + line.index;
        ASSERT_EQ(outlier_place(page, at, entry, data.data()), choice.places[e]);
        const size_t i = line.at[static_cast<size_t>(choice.places[e])];
        ASSERT_EQ(decoded[i], half_to_float(saturate_to_half(rows[i])));
        rest[i] = static_cast<float>(choice.stand_in);
        kept[i] = true;
        ++cases;
      }
    }
    // The page of the rest, which has no outliers, has the same codes, scales and zeros.
    CodedPage plain = page;
    plain.outliers = 0;
    const Bytes dense = encode(plain, rest, kDirty);
    ASSERT_TRUE(std::equal(dense.begin(), dense.begin() + static_cast<std::ptrdiff_t>(at.factors),
                           data.begin()));
    const std::vector<float> decoded_rest = decode(plain, dense);
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_TRUE(kept[i] || decoded[i] == decoded_rest[i]) << i;
    }
  }
  EXPECT_GT(cases, 100'000);
}

// With few outliers the range of the codes is that of the many values: errors fall.
TEST(Outliers, LowerTheErrorOfAllOthers) {
  const CodedPage with = {
      .coding = make_coding(Coding::asym, 3), .group = 64, .width = 64, .outliers = 3};
  CodedPage without = with;
  without.outliers = 0;
  const std::vector<float> rows = page_values(64, 8);
  const auto error = [&](const CodedPage& page) {
    const std::vector<float> decoded = decode(page, encode(page, rows, kDirty));
    double sum = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      sum += std::pow(double{decoded[i]} - double{rows[i]}, 2);
    }
    return sum;
  };
  EXPECT_LT(error(with), 0.1 * error(without));
}

TEST(Outliers, BytesAreTheStatedBits) {
  for (const CodedPage& page : all_pages()) {
    CodedPage plain = page;
    plain.outliers = 0;
    const size_t bytes = page.group > 256 ? 4 : 3;  // binary16 and the place
    const size_t added = bytes * n_scales(page) * static_cast<size_t>(page.outliers);
    EXPECT_EQ(page_offsets(page).end, (page_offsets(plain).end + added + 3) / 4 * 4)
        << page_name(page);
  }
}

TEST(Outliers, PagesOfEvenedOutRowsKeepThemAsTheyWere) {
  for (const Channels channels : {Channels::centred, Channels::scaled}) {
    for (const Per per : {Per::token, Per::channel}) {
      if (channels == Channels::centred && per == Per::channel) continue;
      const CodedPage page = {.coding = make_coding(Coding::asym, 2),
                              .per = per,
                              .channels = channels,
                              .group = 32,
                              .width = 64,
                              .outliers = 1};
      const std::vector<float> rows = page_values(64, 9);
      const Bytes data = encode(page, rows, kDirty);
      const std::vector<float> decoded = decode(page, data);
      const PageOffsets at = page_offsets(page);
      for (const Line& line : lines_of(page)) {
        const int place = outlier_place(page, at, line.index, data.data());
        const size_t i = line.at[static_cast<size_t>(place)];
        ASSERT_EQ(decoded[i], half_to_float(saturate_to_half(rows[i]))) << page_name(page);
      }
    }
  }
}

TEST(Outliers, UnitsAndPartsGiveThePage) {
  for (const CodedPage& page : all_pages()) {
    SCOPED_TRACE(page_name(page));
    const std::vector<float> rows = page_values(page.width, 6);
    const Bytes whole = encode(page, rows, kDirty);
    const int unit = rows_per_unit(page);
    Bytes parts(page_offsets(page).end);
    Bytes scratch(encode_scratch(page));
    for (int first = kPageTokens; first > 0;) {
      const int n = std::min(first, unit == 1 ? 7 : unit);
      first -= n;
      ASSERT_TRUE(encode_page(page, rows.data() + first * page.width, page.width, parts.data(),
                              first, n, scratch.data()));
    }
    ASSERT_EQ(parts, whole);
    const std::vector<float> decoded = decode(page, whole);
    const int n_channels = page.width - 5;
    std::vector<float> part(static_cast<size_t>(30 * n_channels));
    decode_page(page, whole.data(), 17, 30, 3, n_channels, part.data(), n_channels);
    for (int r = 0; r < 30; ++r) {
      for (int c = 0; c < n_channels; ++c) {
        ASSERT_EQ(part[static_cast<size_t>(r * n_channels + c)],
                  decoded[static_cast<size_t>((17 + r) * page.width + 3 + c)]);
      }
    }
  }
}

TEST(Outliers, ClearedRowsAreEqualAndSound) {
  for (const CodedPage& page : all_pages()) {
    SCOPED_TRACE(page_name(page));
    const int unit = rows_per_unit(page);
    if (unit == kPageTokens) continue;
    const int n_rows = unit == 1 ? 37 : kPageTokens - unit;
    const std::vector<float> rows = page_values(page.width, 8);
    std::vector<float> other = page_values(page.width, 9);
    std::copy_n(rows.begin(), n_rows * page.width, other.begin());
    Bytes first = encode(page, rows, kDirty);
    Bytes second = encode(page, other, kDirty);
    clear_rows(page, first.data(), n_rows);
    clear_rows(page, second.data(), n_rows);
    ASSERT_EQ(first, second);
    ASSERT_TRUE(are_outliers_sound(page, first.data()));
  }
}

// Pages that anybody may have written: no place is believed.
TEST(Outliers, PlacesBeyondTheirGroupsAreFoundAndNeverWrittenTo) {
  for (const CodedPage& page : all_pages()) {
    SCOPED_TRACE(page_name(page));
    const Bytes good = encode(page, page_values(page.width, 11), kDirty);
    ASSERT_TRUE(are_outliers_sound(page, good.data()));
    const PageOffsets at = page_offsets(page);
    const size_t last = n_outliers(page) - 1;
    for (const int place : {page.group, 255, 0xffff}) {
      if (place < page.group || (place > 255 && place_size(page) == 1)) continue;
      Bytes bad = good;
      write_outlier(page, at, last, place, 0x3c00, bad.data());
      EXPECT_FALSE(are_outliers_sound(page, bad.data())) << place;
      std::vector<float> exact(static_cast<size_t>(kPageTokens * page.width));  // for sanitizers
      decode_page(page, bad.data(), 0, kPageTokens, 0, page.width, exact.data(), page.width);
    }
    if (page.outliers == 1) continue;
    Bytes twice = good;  // two of a group at one place
    write_outlier(page, at, last, outlier_place(page, at, last - n_scales(page), good.data()), 0,
                  twice.data());
    EXPECT_FALSE(are_outliers_sound(page, twice.data()));
  }
}

TEST(Outliers, ExtremeGroupsStayFinite) {
  constexpr float kMost = std::numeric_limits<float>::max();
  for (const CodedPage& page : all_pages()) {
    for (const auto& [a, b] :
         {std::pair{kMost, -kMost}, {0.0f, 0.0f}, {-0.0f, 0.0f}, {1e20f, 0.0f}}) {
      std::vector<float> rows(static_cast<size_t>(kPageTokens * page.width), b);
      for (size_t i = 0; i < rows.size(); i += 5) rows[i] = a;
      const Bytes data = encode(page, rows, kDirty);
      ASSERT_TRUE(are_outliers_sound(page, data.data())) << page_name(page);
      for (const float value : decode(page, data)) {
        ASSERT_TRUE(std::isfinite(value)) << page_name(page) << " of " << a << " and " << b;
      }
    }
  }
}

TEST(Outliers, SortedLanesAreSorted) {
  for (const int n : {1, 2, 3, 5, 8, 16, 24, 64, 100, 192, 257}) {
    const std::vector<float> x = normal_values(static_cast<size_t>(n * kVectorLanes), 5);
    std::vector<float> sorted = x;
    sort_lanes<Floats>(sorted.data(), n);
    for (int l = 0; l < kVectorLanes; ++l) {
      std::vector<float> wanted;
      std::vector<float> found;
      for (int i = 0; i < n; ++i) {
        wanted.push_back(x[static_cast<size_t>(i * kVectorLanes + l)]);
        found.push_back(sorted[static_cast<size_t>(i * kVectorLanes + l)]);
      }
      std::ranges::sort(wanted);
      ASSERT_EQ(found, wanted) << n;
    }
  }
}

}  // namespace
}  // namespace kve::testing
