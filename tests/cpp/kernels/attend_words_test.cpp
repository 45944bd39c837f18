// Fast attention of many queries in int16 (kernels/cpu/isa/attend_words.cpp), on the instruction
// sets that have it; bf16 or f32 tiles of the others meet the same demands, but for their
// precision.
#include <cstring>

#include "kernels/attend_testing.h"

namespace kve {
namespace {

using test::Case;
using test::Problem;

class AttendWords : public test::Attend {
 protected:
  static Case fast_case(int rows, int queries) {
    Case c;
    c.n_rows = rows;
    c.n_queries = queries;
    c.k_tail = c.v_tail = rows;  // all of it
    c.precision = Precision::fast;
    return c;
  }
  bool has_words() const { return GetParam() == "avx512"; }
  // Tiles of the tile unit hold bf16, but broken rows are zeros there as well.
  bool knows_broken_rows() const { return has_words() || GetParam() == "amx"; }
  // Outputs are averages. Codes of values are off by 2^-13 of the largest of a row at most, weights
  // by 2^-14 of the largest of a tile and by 1.1e-4, scores by 2^-15 of the product of two norms
  // over their square root of dimensions; where averages are of many rows, the largest output is a
  // few times smaller than a value.
  double bound() const { return has_words() ? 1e-3 : test::kRoundedBound; }
};

void set_row(test::TestSide* side, int row, int width, float factor) {
  for (int d = 0; d < width; ++d) {
    const auto at = static_cast<size_t>(row * width + d);
    side->tail[at] = float_to_half(side->values[at] * factor);
    side->values[at] = half_to_float(side->tail[at]);
  }
}

TEST_P(AttendWords, KeepsTwelveBits) {
  for (const int dim : {1, 16, 40, 64, 80, 128, 256, 576}) {
    for (const int rows : {9, 64, 200, 700}) {
      Case c = fast_case(rows, std::min(rows, 70));
      c.n_heads = 6;
      c.key_dim = c.value_dim = dim;
      const Problem problem(c);
      EXPECT_LT(test::relative_error(problem.run(*backend_), problem.reference()), bound())
          << rows << " rows of " << dim;
    }
  }
}

// A first key that nearly all queries look at, whose values are small: what attention sinks are.
TEST_P(AttendWords, SmallValuesOfLargeWeights) {
  Case c = fast_case(300, 60);
  Problem problem(c);
  for (size_t h = 0; h < problem.k.size(); ++h) {
    set_row(&problem.k[h], 0, c.key_dim, 3);
    set_row(&problem.v[h], 0, c.value_dim, 1e-3f);
    set_row(&problem.v[h], 5, c.value_dim, 0);
    set_row(&problem.v[h], 70, c.value_dim, 50);
    set_row(&problem.k[h], 71, c.key_dim, 0);
  }
  EXPECT_LT(test::relative_error(problem.run(*backend_), problem.reference()), bound());
}

// No code of a row depends on another: a query gives the same bits whatever follows it.
TEST_P(AttendWords, LaterRowsChangeNoBit) {
  for (const int window : {0, 100}) {
    Case c = fast_case(230, 60);
    c.window = window;
    const Problem before(c);
    Problem after(c);
    for (size_t h = 0; h < after.k.size(); ++h) {
      for (int row = 200; row < 230; ++row) {
        set_row(&after.k[h], row, c.key_dim, 20);
        set_row(&after.v[h], row, c.value_dim, -300);
      }
    }
    const auto seen = [&](std::vector<float> out) {
      out.resize(static_cast<size_t>(30 * c.n_heads * c.value_dim));  // of rows 170 to 199
      return out;
    };
    EXPECT_TRUE(test::same_bits(seen(before.run(*backend_)), seen(after.run(*backend_))));
  }
}

// Tiles of floats multiply rows that are not seen by zero, so that infinities reach more queries.
TEST_P(AttendWords, BrokenRowsReachThoseWhoSeeThem) {
  if (!knows_broken_rows()) GTEST_SKIP() << "tiles of floats";
  for (const bool values : {false, true}) {
    for (const float broken : {NAN, INFINITY}) {
      Case c = fast_case(200, 80);
      Problem problem(c);
      const int row = 150;  // seen by queries from number 30 on
      auto& side = values ? problem.v[0] : problem.k[0];
      side.tail[static_cast<size_t>(row * c.key_dim + 7)] = float_to_half(broken);
      const std::vector<float> out = problem.run(*backend_);
      const int width = c.n_heads * c.value_dim;
      for (int i = 0; i < c.n_queries; ++i) {
        const float first = out[static_cast<size_t>(i * width + 7)];
        const float other =
            out[static_cast<size_t>(i * width + width - 1)];  // of the other kv head
        if (i < 30) {
          EXPECT_TRUE(std::isfinite(first)) << i;
        } else if (std::isnan(broken)) {
          EXPECT_TRUE(std::isnan(first)) << i;
        }
        EXPECT_TRUE(std::isfinite(other)) << i;
      }
    }
  }
}

// Pages of every number of bits and kind of parameters, at widths that leave strips and blocks of
// channels partly empty.
TEST_P(AttendWords, CodedPagesOfManyQueries) {
  for (const Per per : {Per::token, Per::channel}) {
    for (const Channels channels : {Channels::plain, Channels::centred, Channels::scaled}) {
      for (int bits = 2; bits <= 8; ++bits) {
        for (const int dim : {16, 40, 64, 80, 128}) {
          Case c = fast_case(200, 70);
          c.key_dim = c.value_dim = dim;
          c.k_tail = c.v_tail = 3;
          c.k_codec.id = CodecId::coded;
          c.k_codec.coding = {bits % 2 == 0 ? Coding::asym : Coding::sym,
                              static_cast<uint8_t>(bits)};
          c.k_codec.group = per == Per::token ? kWholeHead : 32;
          c.k_codec.per = per;
          c.k_codec.channels = channels;
          c.v_codec = c.k_codec;
          const Problem problem(c);
          EXPECT_LT(test::relative_error(problem.run(*backend_), problem.reference()),
                    test::kRoundedBound)
              << bits << " bits of " << dim;
        }
      }
    }
  }
}

// The scale of a token that is none: those who see the token get no numbers, others theirs.
TEST_P(AttendWords, BrokenParametersReachThoseWhoSeeThem) {
  if (!knows_broken_rows()) GTEST_SKIP() << "tiles of floats";
  for (const bool values : {false, true}) {
    Case c = fast_case(200, 150);
    c.k_tail = c.v_tail = 3;
    c.k_codec.id = CodecId::coded;
    c.k_codec.coding = {Coding::sym, 8};
    c.k_codec.group = kWholeHead;
    c.v_codec = c.k_codec;
    const Problem whole(c);
    Problem problem(c);
    auto& side = values ? problem.v[0] : problem.k[0];
    const int row = 100;  // seen by queries from number 50 on
    const PageOffsets at = page_offsets(side.view.format.coded);
    const uint16_t infinity = float_to_half(INFINITY);
    std::memcpy(side.pages[1].data() + at.scales + 2 * (row - kPageTokens), &infinity, 2);
    const std::vector<float> expected = whole.run(*backend_);
    const std::vector<float> out = problem.run(*backend_);
    for (size_t i = 0; i < out.size(); ++i) {
      const auto query = static_cast<int>(i) / (c.n_heads * c.value_dim);
      const bool first_head = static_cast<int>(i) % (c.n_heads * c.value_dim) < c.value_dim;
      if (query < 50) {
        EXPECT_NEAR(out[i], expected[i], 0.02) << query;
      } else if (first_head) {
        EXPECT_FALSE(std::isfinite(out[i])) << query;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, AttendWords, ::testing::ValuesIn(test::available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace kve
