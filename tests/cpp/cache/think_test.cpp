// ThinK: channels of keys that are left out, in caches as they are used.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cache/io_testing.h"
#include "cache/project/think.h"
#include "cache/query_squares.h"
#include "cache/select_testing.h"

namespace kve {
namespace {

// By the definition, one sum after the other: the channels that stay of keys [rows][dim] and the
// queries [rows][group * dim] of one kv head.
std::vector<int> channels_by_definition(const std::vector<std::vector<double>>& keys,
                                        const std::vector<std::vector<double>>& queries, int dim,
                                        int n_kept) {
  std::vector<std::pair<double, int>> scores;
  for (int c = 0; c < dim; ++c) {
    double k = 0;
    double q = 0;
    for (const auto& row : keys) k += std::pow(row[static_cast<size_t>(c)], 2);
    for (const auto& row : queries) {
      for (size_t at = static_cast<size_t>(c); at < row.size(); at += static_cast<size_t>(dim)) {
        q += row[at] * row[at];
      }
    }
    scores.emplace_back(-k * q, c);
  }
  std::sort(scores.begin(), scores.end());
  std::vector<int> out;
  for (int i = 0; i < n_kept; ++i) out.push_back(scores[static_cast<size_t>(i)].second);
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::vector<double>> rows_of(ConstMat rows, int64_t first, int64_t n, int64_t column,
                                         int64_t width) {
  std::vector<std::vector<double>> out;
  for (int64_t r = first; r < first + n; ++r) {
    const float* row = rows.row(r) + column;
    out.emplace_back(row, row + width);
  }
  return out;
}

// Channels that are zero in all pages of the keys of one head, and no others.
std::vector<int> channels_that_stay(const KvCache& cache, int layer, int head) {
  const HeadView& view = cache.view(layer)[static_cast<size_t>(head)];
  int coded = 0;
  for (const PageView& page : view.k.pages) coded += page.rows;
  EXPECT_GT(coded, 0);
  const std::vector<float> keys = read_rows(cache, layer, head, false);
  std::vector<int> out;
  for (int c = 0; c < kSelectDim; ++c) {
    bool zero = true;
    for (int r = view.k.sink_rows; r < view.k.sink_rows + coded; ++r) {
      zero = zero && keys[static_cast<size_t>(r * kSelectDim + c)] == 0;
    }
    if (!zero) out.push_back(c);
  }
  return out;
}

TEST(Think, ChannelsOfTheLargestProductsStay) {
  // Squares 1, 16, 4, 9 and 2, 1, 8, 0 of queries: products 2, 16, 32, 0.
  const std::vector<float> keys = {1, 4, 2, 3};
  const std::vector<double> squares = {2, 1, 8, 0};
  EXPECT_EQ(think_channels({keys.data(), 1, 4}, squares, 1), (std::vector<int>{2}));
  EXPECT_EQ(think_channels({keys.data(), 1, 4}, squares, 2), (std::vector<int>{1, 2}));
  EXPECT_EQ(think_channels({keys.data(), 1, 4}, squares, 3), (std::vector<int>{0, 1, 2}));
  const std::vector<double> ones(4, 1.0);
  EXPECT_EQ(think_channels({keys.data(), 0, 4}, ones, 2), (std::vector<int>{0, 1}));
  const BasisData basis = think_basis({keys.data(), 1, 4}, squares, 2);
  EXPECT_EQ(basis.width, 2);
  EXPECT_EQ(basis.lift, (std::vector<float>{0, 0, 1, 0, 0, 1, 0, 0}));
}

// However a prompt is cut into passes.
TEST(Think, AWholePromptAndItsNewestQueriesJudge) {
  const auto backend = make_cpu_backend(2, "");
  const std::vector<LayerShape> shapes = select_shapes(2);
  const TokenRows tokens(shapes, 300, 11);
  constexpr int kWindow = 20;
  std::vector<std::byte> first;
  for (const std::vector<int>& passes :
       {std::vector<int>{300}, {100, 200}, {150, 140, 10}, {290, 7, 3}, {299, 1}}) {
    KvCache cache(CacheSpec::parse("think:ratio=0.3,window=20+f16"), shapes);
    int left = 300;
    for (const int n : passes) {
      left -= n;
      read_tokens(tokens, &cache, *backend, n, left > 0);
      EXPECT_EQ(cache.view(0)[0].k.pages.empty(), left > 0) << "waits for the end";
    }
    for (const int layer : {0, 1}) {
      const auto at = static_cast<size_t>(layer);
      for (const int head : {0, 1}) {
        const auto keys = rows_of(tokens.k(at, 0, 300), 0, 300, head * kSelectDim, kSelectDim);
        const auto queries = rows_of(tokens.q(at, 0, 300), 300 - kWindow, kWindow,
                                     int64_t{2} * head * kSelectDim, 2 * kSelectDim);
        // 32 channels less floor(0.3 * 32).
        EXPECT_EQ(channels_that_stay(cache, layer, head),
                  channels_by_definition(keys, queries, kSelectDim, 23));
      }
    }
    if (first.empty()) first = cache.save();
    EXPECT_EQ(cache.save(), first);
  }
}

TEST(Think, ChannelsThatStayAreAsTheyWereAndTheNewestRowsKeepAll) {
  const auto backend = make_cpu_backend(1, "");
  const std::vector<LayerShape> shapes = select_shapes(1);
  const TokenRows tokens(shapes, 300, 12);
  KvCache cache(CacheSpec::parse("think:ratio=0.5,window=32+f16"), shapes);
  read_tokens(tokens, &cache, *backend, 300);
  const std::vector<int> stay = channels_that_stay(cache, 0, 1);
  ASSERT_EQ(stay.size(), 16u);
  const Held rows = held(cache, false);
  EXPECT_GE(rows.tail, 32);
  EXPECT_LT(rows.tail, 32 + kPageTokens);
  const std::vector<float> keys = read_rows(cache, 0, 1, false);
  for (int r = 0; r < 300; ++r) {
    const float* given = tokens.k(0, r, 1).row(0) + kSelectDim;
    for (int c = 0; c < kSelectDim; ++c) {
      const bool there = r >= rows.coded || std::ranges::binary_search(stay, c);
      const float expected = there ? half_to_float(float_to_half(given[c])) : 0.0f;
      ASSERT_EQ(keys[static_cast<size_t>(r * kSelectDim + c)], expected) << r << ' ' << c;
    }
  }
  // Values are not concerned.
  const std::vector<float> values = read_rows(cache, 0, 1, true);
  for (int r = 0; r < 300; ++r) {
    const float* given = tokens.v(0, r, 1).row(0) + kSelectDim;
    for (int c = 0; c < kSelectDim; ++c) {
      ASSERT_EQ(values[static_cast<size_t>(r * kSelectDim + c)],
                half_to_float(float_to_half(given[c])));
    }
  }
}

// Pages hold the channels that stay and nothing else.
TEST(Think, BytesAreFreed) {
  const auto backend = make_cpu_backend(1, "");
  const std::vector<LayerShape> shapes = select_shapes(1);
  const TokenRows tokens(shapes, 64 * 9 + 32, 13);
  const auto pages = [&](const char* spec) {
    KvCache cache(CacheSpec::parse(spec), shapes);
    read_tokens(tokens, &cache, *backend, 64 * 9 + 32);
    EXPECT_EQ(cache.stats().bytes, cache.memory().live());
    int64_t bytes = 0;
    for (const HeadView& head : cache.view(0)) {
      for (const PageView& page : head.k.pages) bytes += page.bytes;
    }
    return bytes;
  };
  const int64_t rows = 2 * 64 * 9;
  EXPECT_EQ(pages("think:ratio=0.25+f16"), rows * 24 * 2);
  EXPECT_EQ(pages("think:ratio=0.5+f16"), rows * 16 * 2);
  // 4 bits for 24 channels, and a scale and a minimum.
  EXPECT_EQ(pages("think:ratio=0.25+int4:tail=32"), rows * (12 + 4));
}

TEST(Think, OfShortPromptsTheFirstPageJudges) {
  const auto backend = make_cpu_backend(1, "");
  const std::vector<LayerShape> shapes = select_shapes(1);
  const TokenRows tokens(shapes, 200, 14);
  KvCache cache(CacheSpec::parse("think:ratio=0.5,window=16+f16"), shapes);
  read_tokens(tokens, &cache, *backend, 30);
  for (int i = 30; i < 16 + 64; ++i) {
    EXPECT_TRUE(cache.view(0)[0].k.pages.empty());
    read_tokens(tokens, &cache, *backend, 1);
  }
  ASSERT_EQ(held(cache, false), (Held{0, 64, 16}));
  const auto keys = rows_of(tokens.k(0, 0, 80), 0, 80, 0, kSelectDim);
  const auto queries = rows_of(tokens.q(0, 0, 80), 64, 16, 0, 2 * kSelectDim);
  const std::vector<int> stay = channels_that_stay(cache, 0, 0);
  EXPECT_EQ(stay, channels_by_definition(keys, queries, kSelectDim, 16));
  // For good.
  for (int i = 80; i < 200; ++i) read_tokens(tokens, &cache, *backend, 1);
  EXPECT_EQ(channels_that_stay(cache, 0, 0), stay);
}

// Rows that are gone again have no say.
TEST(Think, TokensThatWereTakenBackDoNotJudge) {
  const auto backend = make_cpu_backend(1, "");
  const std::vector<LayerShape> shapes = select_shapes(1);
  const TokenRows tokens(shapes, 200, 15);
  const TokenRows others(shapes, 200, 16);
  const CacheSpec spec = CacheSpec::parse("think:ratio=0.5,window=16+f16");
  KvCache cache(spec, shapes);
  for (int i = 0; i < 75; ++i) read_tokens(tokens, &cache, *backend, 1);
  for (int i = 0; i < 4; ++i) read_tokens(others, &cache, *backend, 1);
  attend_tokens(others, &cache, *backend, 3);  // and some that were never committed
  cache.truncate(75);
  for (int i = 75; i < 80; ++i) read_tokens(tokens, &cache, *backend, 1);
  const auto keys = rows_of(tokens.k(0, 0, 80), 0, 80, 0, kSelectDim);
  const auto queries = rows_of(tokens.q(0, 0, 80), 64, 16, 0, 2 * kSelectDim);
  EXPECT_EQ(channels_that_stay(cache, 0, 0), channels_by_definition(keys, queries, kSelectDim, 16));
}

// Appended tokens that are not being committed are no part of the cache yet.
TEST(Think, GuessesDoNotJudge) {
  const auto backend = make_cpu_backend(1, "");
  const std::vector<LayerShape> shapes = select_shapes(1);
  const TokenRows tokens(shapes, 200, 17);
  const CacheSpec spec = CacheSpec::parse("think:ratio=0.5,window=16+f16");
  KvCache one_by_one(spec, shapes);
  KvCache guessed(spec, shapes);
  for (int i = 0; i < 76; ++i) read_tokens(tokens, &one_by_one, *backend, 1);
  for (int i = 0; i < 76; ++i) read_tokens(tokens, &guessed, *backend, 1);
  ASSERT_EQ(guessed.tokens_until_seal(), 4);
  for (int i = 76; i < 80; ++i) read_tokens(tokens, &one_by_one, *backend, 1);
  attend_tokens(tokens, &guessed, *backend, 7);
  guessed.commit(*backend, 4);
  guessed.rollback();
  EXPECT_EQ(held(guessed, false), (Held{0, 64, 16}));
  EXPECT_EQ(guessed.save(), one_by_one.save());
}

// Queries that wait to judge are saved with the rest.
TEST(Think, WaitingQueriesAreSavedAndBadOnesRefused) {
  const auto backend = make_cpu_backend(1, "");
  const std::vector<LayerShape> shapes = select_shapes(2);
  const TokenRows tokens(shapes, 200, 18);
  const CacheSpec spec = CacheSpec::parse("think:ratio=0.5,window=16+int4:tail=16");
  KvCache cache(spec, shapes);
  read_tokens(tokens, &cache, *backend, 50);
  const std::vector<std::byte> bytes = cache.save();
  KvCache restored(spec, shapes);
  restored.load(bytes);
  EXPECT_EQ(restored.save(), bytes);
  EXPECT_EQ(restored.stats().bytes, restored.memory().live());
  KvCache fork = restored.fork();
  for (KvCache* each : {&cache, &restored, &fork}) {
    for (int i = 50; i < 100; ++i) read_tokens(tokens, each, *backend, 1);
    EXPECT_GT(held(*each, false).coded, 0);
  }
  EXPECT_EQ(restored.save(), cache.save());
  EXPECT_EQ(fork.save(), cache.save());
  for (size_t size = 0; size < bytes.size(); size += 97) {
    const auto end = bytes.begin() + static_cast<std::ptrdiff_t>(size);
    EXPECT_THROW(restored.load({bytes.begin(), end}), FormatError) << size;
  }
  // Version, spec, shapes, tokens, first position; then 16 queries of two kv heads.
  const size_t count = 4 + 4 + spec.str().size() + 4 + 2 * 16 + 4 + 4;
  const auto with = [&](size_t at, auto value) {
    std::vector<std::byte> bad = bytes;
    std::memcpy(bad.data() + at, &value, sizeof(value));
    return bad;
  };
  int64_t there = 0;
  std::memcpy(&there, bytes.data() + count, sizeof(there));
  ASSERT_EQ(there, 16);
  for (const int64_t n : {int64_t{-1}, int64_t{17}, INT64_MAX, INT64_MIN, int64_t{15}}) {
    EXPECT_THROW(restored.load(with(count, n)), FormatError) << n;
  }
  for (const float square :
       {-1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_THROW(restored.load(with(count + 8 + 4 * 40, square)), FormatError) << square;
  }
  EXPECT_EQ(restored.save(), cache.save()) << "a failed load has changed the cache";
}

TEST(Think, SquaresOfAnyQueriesAreNumbers) {
  QuerySquares squares(1, 4, 8, /*newest=*/true, std::make_shared<MemoryCounter>());
  const float infinity = std::numeric_limits<float>::infinity();
  const float rows[4] = {1e30f, -infinity, std::numeric_limits<float>::quiet_NaN(), 2};
  squares.append({rows, 1, 4, 4});
  squares.commit(1);
  const std::vector<double> means = squares.means(0, 0);
  EXPECT_TRUE(std::ranges::all_of(means, [](double mean) { return std::isfinite(mean); }));
  EXPECT_EQ(means[3], 4);
  // A channel without keys is worth nothing, however large its queries are.
  const float keys[4] = {0, 0, 0, 1};
  EXPECT_EQ(think_channels({keys, 1, 4, 4}, means, 1), std::vector<int>{3});
}

TEST(Think, SpecsThatDoNotFitAreRefused) {
  const std::vector<LayerShape> shapes = select_shapes(1);
  const auto refusal = [&](const char* spec) {
    return message_of([&] { KvCache(CacheSpec::parse(spec), shapes); });
  };
  EXPECT_TRUE(contains(refusal("v=think+f16"), "leaves out channels of keys"));
  EXPECT_TRUE(contains(refusal("think:ratio=0"), "above 0 and below 1"));
  EXPECT_TRUE(contains(refusal("think:ratio=1"), "above 0 and below 1"));
  EXPECT_TRUE(contains(refusal("think:ratio=0.0"), "above 0 and below 1"));
  EXPECT_TRUE(contains(refusal("think:ratio=0.1234"), "at most 3 digits"));
  EXPECT_TRUE(contains(refusal("think:ratio=.5"), "above 0 and below 1"));
  EXPECT_TRUE(contains(refusal("think:ratio=0.4+q8_0"), "channels that stay, 20 is not"));
  EXPECT_TRUE(contains(refusal("think:ratio=0.4+int4:group=16"), "is not a multiple of 16"));
  EXPECT_TRUE(contains(refusal("think:ratio=0.5+int4:group=row"), "a basis of its own"));
  EXPECT_TRUE(contains(refusal("think+best4"), "second choice for the keys"));
  EXPECT_TRUE(contains(refusal("infllm+think+f16"), "no projector"));
  const CacheSpec spec = CacheSpec::parse("think:ratio=0.4+int4");
  EXPECT_EQ(spec.str(),
            "k=think:ratio=0.4,window=32+k=int4:group=head,tail=64+v=int4:group=32,tail=64");
  EXPECT_EQ(CacheSpec::parse(spec.str()), spec);
  EXPECT_EQ(CacheSpec::parse("int4 + k=think:ratio=0.400"), spec);
  EXPECT_EQ(CacheSpec::parse("think:ratio=0.125,window=7+f16:layers=1").str(),
            "k=think:ratio=0.125,window=7+k=f16+v=f16+f16:layers=1");
}

}  // namespace
}  // namespace kve
