#include "kernels/cuda/attend.h"

#include <cmath>
#include <functional>
#include <limits>

#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

using test::Random;

struct Shape {
  int n_heads;
  int n_kv_heads;
  int key_dim;
  int value_dim;
};

// How the rows of a head are divided, on both sides.
struct Rows {
  int sinks;
  int key_pages;  // rows in pages
  int value_pages;
  int total;
};

struct Case {
  Shape shape;
  CodecSpec keys;
  CodecSpec values;
  Rows rows;
  int n_queries = 1;
  int window = 0;
  float softcap = 0;
  int dead = -1;  // a row
};

CodecSpec coded(Coding coding, int bits, Per per, int group,
                ScaleFormat scale = ScaleFormat::half) {
  CodecSpec codec{.id = CodecId::coded, .per = per, .group = group};
  codec.coding.coding = coding;
  codec.coding.bits = static_cast<uint8_t>(bits);
  codec.coding.scale = scale;
  if (coding == Coding::lloyd) codec.coding.fit = Fit::energy;
  return codec;
}
CodecSpec floats(CodecId id) { return CodecSpec{.id = id}; }

// One side of all kv heads in host memory: pages of the rows of all heads, and f32 rows as they are
// read back, the reference.
struct HostSide {
  PageFormat format;
  int dim;
  std::vector<std::vector<std::byte>> pages;
  std::vector<uint16_t> sinks;  // [sinks, width]
  std::vector<uint16_t> tail;
  std::vector<float> rows;  // [total, width]
};

HostSide make_side(const CodecSpec& codec, int dim, int n_heads, int sinks, int paged, int total,
                   bool values, Random* random) {
  const int width = dim * n_heads;
  HostSide side{page_format(codec, width, values), dim, {}, {}, {}, {}};
  std::vector<float> raw = random->normals(int64_t{total} * width);
  // Channels of keys differ in size and have means, as in models.
  for (size_t n = 0; n < raw.size(); ++n) {
    const size_t channel = n % static_cast<size_t>(width);
    raw[n] = raw[n] * (1 + static_cast<float>(channel % 7) / 4) + (channel % 5 == 0 ? 1.0f : 0.0f);
  }
  side.rows.resize(raw.size());
  const auto at = [width](int row) {
    return static_cast<size_t>(row) * static_cast<size_t>(width);
  };
  const auto keep_halves = [&](int first, int n, std::vector<uint16_t>* to) {
    for (size_t i = at(first); i < at(first + n); ++i) {
      to->push_back(float_to_half(raw[i]));
      side.rows[i] = half_to_float(to->back());
    }
  };
  keep_halves(0, sinks, &side.sinks);
  for (int row = sinks; row < sinks + paged; row += kPageTokens) {
    // What is not written is NaN in every format.
    std::vector<std::byte> page(page_bytes(side.format), std::byte{0xff});
    std::vector<std::byte> scratch(encode_scratch(side.format) + 64);
    const int n = std::min(kPageTokens, sinks + paged - row);
    EXPECT_TRUE(
        encode_rows(side.format, raw.data() + at(row), width, page.data(), 0, n, scratch.data()));
    decode_rows(side.format, page.data(), 0, n, 0, width, side.rows.data() + at(row), width);
    side.pages.push_back(std::move(page));
  }
  keep_halves(sinks + paged, total - sinks - paged, &side.tail);
  return side;
}

// The same side in device memory.
struct DeviceSide {
  std::vector<std::unique_ptr<DeviceArray<std::byte>>> pages;
  std::unique_ptr<DeviceArray<PagePlace>> places;
  std::unique_ptr<DeviceArray<PageKind>> kind;
  std::unique_ptr<DeviceArray<uint16_t>> sinks;
  std::unique_ptr<DeviceArray<uint16_t>> tail;

  DeviceSide(Device& device, const HostSide& host) {
    std::vector<PagePlace> found;
    for (const auto& page : host.pages) {
      pages.push_back(
          std::make_unique<DeviceArray<std::byte>>(device, std::span<const std::byte>(page)));
      found.push_back({pages.back()->data()});
    }
    places = std::make_unique<DeviceArray<PagePlace>>(device, std::span<const PagePlace>(found));
    const PageKind own{side_format(host.format), {}};
    kind = std::make_unique<DeviceArray<PageKind>>(device, std::span<const PageKind>(&own, 1));
    sinks = std::make_unique<DeviceArray<uint16_t>>(device, std::span<const uint16_t>(host.sinks));
    tail = std::make_unique<DeviceArray<uint16_t>>(device, std::span<const uint16_t>(host.tail));
  }

  SideRows of_head(const HostSide& host, int head, int paged) const {
    const int first = head * host.dim;
    SideRows rows{.first_channel = first,
                  .n_channels = host.dim,
                  .kinds = kind->data(),
                  .n_tiers = 1,
                  .pages = places->data(),
                  .page_rows = paged,
                  .row_stride = host.format.width};
    if (sinks->size() > 0) rows.sinks = sinks->data() + first;
    if (tail->size() > 0) rows.tail = tail->data() + first;
    return rows;
  }
};

// Attention in double precision: out [n_queries, n_heads * value_dim], then the log sums.
std::vector<double> reference(const Case& c, const AttendParams& params, const HostSide& k,
                              const HostSide& v, const std::vector<float>& q, int first_row) {
  const Shape& s = c.shape;
  const int group = s.n_heads / s.n_kv_heads;
  std::vector<double> out;
  std::vector<double> log_sums;
  for (int i = 0; i < c.n_queries; ++i) {
    for (int h = 0; h < s.n_heads; ++h) {
      const int kv = h / group;
      std::vector<double> weights(static_cast<size_t>(c.rows.total), 0.0);
      double most = -INFINITY;
      for (int r = 0; r <= first_row + i; ++r) {
        auto& weight = weights[static_cast<size_t>(r)];
        weight = -INFINITY;
        if ((c.window > 0 && r <= first_row + i - c.window) || r == c.dead) continue;
        double score = 0;
        for (int d = 0; d < s.key_dim; ++d) {
          score +=
              static_cast<double>(q[static_cast<size_t>((i * s.n_heads + h) * s.key_dim + d)]) *
              k.rows[static_cast<size_t>((r * s.n_kv_heads + kv) * s.key_dim + d)];
        }
        score *= params.scale;
        if (c.softcap > 0) score = c.softcap * std::tanh(score / c.softcap);
        weight = score;
        most = std::max(most, score);
      }
      double sum = 0;
      std::vector<double> row(static_cast<size_t>(s.value_dim), 0.0);
      for (int r = 0; r <= first_row + i; ++r) {
        const double weight = std::exp(weights[static_cast<size_t>(r)] - most);
        sum += weight;
        for (int d = 0; d < s.value_dim; ++d) {
          row[static_cast<size_t>(d)] +=
              weight * v.rows[static_cast<size_t>((r * s.n_kv_heads + kv) * s.value_dim + d)];
        }
      }
      for (const double value : row) out.push_back(value / sum);
      log_sums.push_back((most + std::log(sum)) / std::log(2.0));
    }
  }
  out.insert(out.end(), log_sums.begin(), log_sums.end());
  return out;
}

class CudaAttend : public CudaTest {
 protected:
  void check(const Case& c, const std::string& what) {
    SCOPED_TRACE(what);
    const Shape& s = c.shape;
    Random random(static_cast<uint64_t>(s.key_dim + c.rows.total + 1000 * s.n_heads));
    const HostSide k = make_side(c.keys, s.key_dim, s.n_kv_heads, c.rows.sinks, c.rows.key_pages,
                                 c.rows.total, false, &random);
    const HostSide v = make_side(c.values, s.value_dim, s.n_kv_heads, c.rows.sinks,
                                 c.rows.value_pages, c.rows.total, true, &random);
    const std::vector<float> q = random.normals(int64_t{c.n_queries} * s.n_heads * s.key_dim, 0.7f);
    const AttendParams params{.n_heads = s.n_heads,
                              .n_kv_heads = s.n_kv_heads,
                              .key_dim = s.key_dim,
                              .value_dim = s.value_dim,
                              .scale = 1 / std::sqrt(static_cast<float>(s.key_dim)),
                              .softcap = c.softcap,
                              .window = c.window};
    const int first_row = c.rows.total - c.n_queries;
    const DeviceSide device_k(device(), k);
    const DeviceSide device_v(device(), v);
    std::vector<uint64_t> dead(static_cast<size_t>(c.rows.total + 63) / 64, 0);
    if (c.dead >= 0) dead[static_cast<size_t>(c.dead) / 64] |= uint64_t{1} << (c.dead % 64);
    const auto device_dead = on_device(dead);
    std::vector<HeadRows> heads;
    for (int h = 0; h < s.n_kv_heads; ++h) {
      heads.push_back({.k = device_k.of_head(k, h, c.rows.key_pages),
                       .v = device_v.of_head(v, h, c.rows.value_pages),
                       .sink_rows = c.rows.sinks,
                       .n_rows = c.rows.total,
                       .first_row = first_row,
                       .dead = c.dead >= 0 ? device_dead.data() : nullptr});
    }
    const auto device_heads = on_device(heads);
    const auto device_q = on_device(q);
    const int64_t out_cols = int64_t{s.n_heads} * s.value_dim;
    DeviceArray<float> out(device(), static_cast<size_t>(c.n_queries * out_cols));
    DeviceArray<float> log_sums(device(), static_cast<size_t>(c.n_queries * s.n_heads));
    DeviceArray<std::byte> scratch(device(), attend_scratch(params, c.n_queries, c.rows.total));
    ASSERT_EQ(attend_refusal(params), "");
    attend(params,
           {.q = ConstMat(device_q.data(), c.n_queries, int64_t{s.n_heads} * s.key_dim),
            .heads = device_heads.data(),
            .most_rows = c.rows.total,
            .out = Mat(out.data(), c.n_queries, out_cols),
            .log_sums = log_sums.data()},
           scratch.data());
    const std::vector<double> expected = reference(c, params, k, v, q, first_row);
    const std::vector<double> expected_out(expected.begin(),
                                           expected.end() - c.n_queries * s.n_heads);
    // Queries, rows and weights are rounded to binary16: a score is a sum of key_dim products that
    // are each off by up to 3 * 2^-11, of both signs.
    EXPECT_LT(test::rms_error(out.host(), expected_out), 2e-3);
    EXPECT_LT(test::relative_error(out.host(), expected_out), 6e-3);
    const std::vector<float> found = log_sums.host();
    for (size_t n = 0; n < found.size(); ++n) {
      EXPECT_NEAR(found[n], expected[expected_out.size() + n], 0.02) << n;
    }
  }
};

const Rows kRagged{4, 128, 150, 171};
const CodecSpec kHalf = floats(CodecId::f16);

TEST_P(CudaAttend, HeadSizesAndGroupsOfHeads) {
  for (const int dim : {64, 80, 96, 128, 256}) {
    for (const Shape& shape :
         {Shape{2, 2, dim, dim}, Shape{6, 2, dim, dim}, Shape{12, 1, dim, dim}}) {
      check({shape, coded(Coding::asym, 4, Per::channel, 64),
             coded(Coding::asym, 4, Per::token, 16), kRagged},
            "head of " + std::to_string(dim) + ", " + std::to_string(shape.n_heads) + " heads");
    }
  }
  check({{4, 2, 64, 128}, kHalf, kHalf, kRagged}, "values wider than keys");
}

TEST_P(CudaAttend, Codecs) {
  const Shape shape{4, 2, 64, 64};
  for (int bits = 1; bits <= 8; ++bits) {
    check({shape, coded(Coding::asym, bits, Per::channel, 64),
           coded(Coding::asym, bits, Per::token, 32), kRagged},
          "asym, " + std::to_string(bits) + " bits");
    check({shape,
           coded(Coding::asym, bits, Per::token, 32),
           coded(Coding::asym, bits, Per::channel, 32),
           {0, 128, 128, 130}},
          "asym on the other axis, " + std::to_string(bits) + " bits");
  }
  for (const Coding coding : {Coding::q8_0, Coding::q5_1, Coding::q5_0, Coding::q4_1, Coding::q4_0,
                              Coding::iq4_nl, Coding::nf4, Coding::e4m3, Coding::e5m2}) {
    const CodecSpec codec = coded(coding, fixed_bits(coding), Per::token, 32);
    check({shape, codec, codec, {0, 140, 140, 150}},
          "coding " + std::to_string(static_cast<int>(coding)));
  }
  for (int bits = 1; bits <= 4; ++bits) {
    const CodecSpec codec = coded(Coding::lloyd, bits, Per::token, kWholeHead);
    check({{4, 1, 64, 64}, codec, codec, {0, 140, 140, 150}},
          "lloyd, " + std::to_string(bits) + " bits");
  }
  for (int bits = 2; bits <= 4; ++bits) {
    const CodecSpec codec = coded(Coding::sym, bits, Per::token, 32, ScaleFormat::log8);
    check({shape, codec, codec, {2, 128, 128, 150}}, "scales of 8 bits");
  }
}

// Of channels and of tokens, on both sides; and means.
TEST_P(CudaAttend, Factors) {
  for (const Channels channels : {Channels::centred, Channels::scaled}) {
    for (const int bits : {2, 4, 5}) {
      CodecSpec by_channel = coded(Coding::asym, bits, Per::channel, 64);
      CodecSpec by_token = coded(Coding::asym, bits, Per::token, 32);
      by_channel.channels = by_token.channels = channels;
      const std::string what = (channels == Channels::scaled ? "scaled, " : "centred, ") +
                               std::to_string(bits) + " bits";
      check({{4, 2, 64, 64}, by_channel, by_token, {4, 128, 128, 140}}, what);
      check({{4, 2, 64, 64}, by_token, by_channel, {0, 128, 64, 140}, 3}, what + ", other axes");
    }
  }
}

TEST_P(CudaAttend, Floats) {
  const Shape shape{4, 2, 80, 80};
  check({shape, kHalf, kHalf, {0, 0, 0, 1}}, "one row");
  check({shape, kHalf, kHalf, {0, 0, 0, 64}}, "a tail alone");
  check({shape, kHalf, kHalf, {70, 0, 0, 75}}, "many sinks");
  check({shape, kHalf, kHalf, {0, 100, 100, 100}}, "pages alone");
  check({shape, floats(CodecId::bf16), floats(CodecId::bf16), kRagged}, "bf16");
  check({shape, floats(CodecId::f32), floats(CodecId::f32), kRagged}, "f32");
  check({shape, kHalf, coded(Coding::asym, 2, Per::token, 16), kRagged}, "codes of values only");
}

TEST_P(CudaAttend, ManyQueriesAndMasks) {
  const Shape shape{4, 2, 64, 64};
  const CodecSpec keys = coded(Coding::asym, 4, Per::channel, 64);
  const CodecSpec values = coded(Coding::asym, 4, Per::token, 32);
  for (const int n : {2, 5, 9, 21}) {
    check({shape, keys, values, kRagged, n}, std::to_string(n) + " queries");
  }
  check({.shape = shape,
         .keys = keys,
         .values = values,
         .rows = kRagged,
         .n_queries = 3,
         .window = 50},
        "window");
  check({.shape = shape,
         .keys = keys,
         .values = values,
         .rows = kRagged,
         .n_queries = 12,
         .window = 30},
        "window, many queries");
  check({.shape = shape, .keys = keys, .values = values, .rows = kRagged, .softcap = 2}, "softcap");
  check({.shape = shape, .keys = keys, .values = values, .rows = kRagged, .dead = 100},
        "a dead row");
}

TEST_P(CudaAttend, SeveralParts) {
  const Shape shape{4, 1, 64, 64};
  check({shape,
         coded(Coding::asym, 4, Per::channel, 64),
         coded(Coding::asym, 4, Per::token, 32),
         {4, 2112, 2112, 2150},
         2},
        "three parts");
}

// A query gets the same bits in every call with at most kFewRows queries (few_rows.h), though rows
// that only later queries see are there or not.
TEST_P(CudaAttend, QueriesDoNotDependOnOthers) {
  const int n = 5;
  const int total = 1250;  // two parts
  const int dim = 64;
  const AttendParams params{
      .n_heads = 6, .n_kv_heads = 1, .key_dim = dim, .value_dim = dim, .scale = 0.125f};
  Random random(5);
  const int paged = 1216;
  const HostSide k =
      make_side(coded(Coding::asym, 4, Per::channel, 64), dim, 1, 4, paged, total, false, &random);
  const HostSide v =
      make_side(coded(Coding::asym, 2, Per::token, 32), dim, 1, 4, paged, total, true, &random);
  const DeviceSide device_k(device(), k);
  const DeviceSide device_v(device(), v);
  const int64_t width = int64_t{params.n_heads} * dim;
  const std::vector<float> q = random.normals(n * width);
  const auto device_q = on_device(q);
  const auto run = [&](int first, int count) {
    const int rows = total - n + first + count;
    const auto heads = on_device(std::vector<HeadRows>{{.k = device_k.of_head(k, 0, paged),
                                                        .v = device_v.of_head(v, 0, paged),
                                                        .sink_rows = 4,
                                                        .n_rows = rows,
                                                        .first_row = total - n + first}});
    DeviceArray<float> out(device(), static_cast<size_t>(count * width));
    DeviceArray<std::byte> scratch(device(), attend_scratch(params, count, rows));
    attend(params,
           {.q = ConstMat(device_q.data() + first * width, count, width),
            .heads = heads.data(),
            .most_rows = rows,
            .out = Mat(out.data(), count, width)},
           scratch.data());
    return out.host();
  };
  const std::vector<float> together = run(0, n);
  for (int i = 0; i < n; ++i) {
    const std::vector<float> row(together.begin() + i * width, together.begin() + (i + 1) * width);
    EXPECT_TRUE(test::same_bits(run(i, 1), row)) << i;
  }
}

TEST_P(CudaAttend, RefusesWhatItDoesNotHave) {
  CodecSpec codec = coded(Coding::asym, 4, Per::token, 32);
  const auto reads = [](const CodecSpec& pages, int width, int first, int n) {
    return format_refusal(page_format(pages, width, false), first, n).empty();
  };
  EXPECT_TRUE(reads(codec, 64, 0, 64));
  EXPECT_TRUE(reads(floats(CodecId::f32), 64, 0, 64));
  EXPECT_FALSE(reads(floats(CodecId::f16), 272, 0, 272));
  EXPECT_FALSE(reads(codec, 96, 24, 24));
  codec.outliers = 4;
  EXPECT_FALSE(reads(codec, 64, 0, 64));
  codec.outliers = 0;
  codec.channels = Channels::centred;
  EXPECT_TRUE(reads(codec, 64, 0, 64));
  AttendParams params{.n_heads = 1, .n_kv_heads = 1, .key_dim = 72, .value_dim = 64};
  EXPECT_NE(attend_refusal(params).find("found 72"), std::string::npos);
  params.key_dim = 64;
  EXPECT_EQ(attend_refusal(params), "");
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaAttend, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
