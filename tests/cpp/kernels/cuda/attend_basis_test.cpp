// Attention to pages in a basis, of codes of several sizes and of several tiers, beside the CPU,
// which rebuilds their rows.
#include <algorithm>
#include <cmath>
#include "base/half.h"

#include "kernels/cuda/basis_testing.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

using test::Random;

// A side of one head. Bases and tiers take turns with pages, as far as there are several.
struct OwnSide {
  std::vector<BasisView> bases;     // by PageView::basis; empty: none
  std::vector<PageFormat> formats;  // of tiers
  std::vector<std::vector<std::byte>> pages;
  std::vector<PageView> views;
  std::vector<uint16_t> sinks;
  std::vector<uint16_t> tail;
  SideView view;

  // `paged` rows in pages, of which the first is at position `first_pos` + `sink_rows`.
  void fill(Backend& cpu, const CodecSpec* codecs, int n_tiers, bool values, int dim, int sink_rows,
            int paged, int total, const std::vector<int32_t>& positions, int page_offset,
            Random* random) {
    const int width = bases.empty() ? dim : bases[0].width;
    for (int t = 0; t < n_tiers; ++t) formats.push_back(page_format(codecs[t], width, values));
    std::vector<float> rows = random->normals(int64_t{total} * dim);
    for (size_t n = 0; n < rows.size(); ++n) {
      if (n % static_cast<size_t>(dim) % 7 == 0) rows[n] = 2 * rows[n] + 1;
    }
    const auto halves = [&](int first, int n, std::vector<uint16_t>* to) {
      for (int i = first * dim; i < (first + n) * dim; ++i) {
        to->push_back(float_to_half(rows[static_cast<size_t>(i)]));
      }
    };
    halves(0, sink_rows, &sinks);
    halves(sink_rows + paged, total - sink_rows - paged, &tail);
    const int n_pages = (paged + kPageTokens - 1) / kPageTokens;
    const int n_bases = std::max<int>(1, static_cast<int>(bases.size()) / n_tiers);
    for (int p = 0; p < n_pages; ++p) {
      const int basis = p * n_bases / n_pages * n_tiers + p % n_tiers;
      const int row = sink_rows + p * kPageTokens;
      SealJob job;
      job.format = formats[static_cast<size_t>(p % n_tiers)];
      if (!bases.empty()) {
        job.basis = &bases[static_cast<size_t>(basis)];
        job.format.coded.strip_bits = job.basis->strip_bits;
      }
      pages.emplace_back(page_bytes(job.format));
      job.f32 = rows.data() + int64_t{row} * dim;
      job.stride = job.width = dim;
      job.n_rows = std::min(kPageTokens, paged - p * kPageTokens);
      job.position = positions[static_cast<size_t>(row)];
      job.positions = positions.data() + row;
      job.page_offset = page_offset;
      job.page = pages.back().data();
      EXPECT_EQ(cpu.seal({&job, 1}), -1);
      views.push_back({pages.back().data(), static_cast<int32_t>(pages.back().size()),
                       static_cast<int16_t>(job.n_rows), static_cast<int16_t>(basis)});
    }
    view.width = view.row_stride = dim;
    view.format = formats[0];
    if (!bases.empty()) view.format.coded.strip_bits = bases[0].strip_bits;
    view.older = std::span(formats).subspan(1);
    view.n_channels = width;
    view.pages = views;
    view.bases = bases.empty() ? nullptr : bases.data();
    view.sinks = sinks.data();
    view.sink_rows = sink_rows;
    view.tail = tail.data();
    view.tail_rows = total - sink_rows - paged;
  }
};

CodecSpec keys_of(int bits) {
  CodecSpec codec{.id = CodecId::coded, .per = Per::channel, .group = 64};
  codec.coding = {Coding::asym, static_cast<uint8_t>(bits), Fit::search, ScaleFormat::log8};
  return codec;
}
CodecSpec values_of(int bits) {
  CodecSpec codec{.id = CodecId::coded, .per = Per::token, .group = kWholeHead};
  codec.coding = {Coding::lloyd, static_cast<uint8_t>(bits), Fit::energy, ScaleFormat::log8};
  return codec;
}

struct Case {
  OwnBasis::Shape keys{.int8 = true};
  OwnBasis::Shape values{};
  int n_key_bases = 1;
  int n_value_bases = 1;
  std::vector<CodecSpec> key_codecs = {keys_of(4)};
  std::vector<CodecSpec> value_codecs = {values_of(4)};
  std::vector<uint8_t> strips{};  // of keys
  int pairs = 32;                 // 0: keys are not turned
  bool interleaved = false;
  bool gaps = false;
  int n_queries = 1;
  int group = 3;
  int rows = 300;
  int key_pages = 256;
  int value_pages = 192;
  int sinks = 4;
  int window = 0;
};

class CudaAttendBasis : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped()) gpu_ = std::make_unique<CudaBackend>(make_cpu_backend(2));
  }

  void check(const Case& c, const std::string& what) {
    SCOPED_TRACE(what);
    constexpr int kHeads = 2;
    Random random(static_cast<uint64_t>(c.rows + c.keys.dim));
    std::vector<std::unique_ptr<OwnBasis>> bases;
    std::vector<OwnSide> sides(2 * kHeads);
    std::vector<std::vector<int32_t>> positions(kHeads);
    std::vector<HeadView> heads;
    const int last = c.gaps ? 2 * c.rows : c.rows - 1;
    for (size_t h = 0; h < kHeads; ++h) {
      for (int row = 0; row < c.rows; ++row) {
        const bool own = row >= c.rows - c.n_queries;
        positions[h].push_back(!c.gaps ? row
                               : own   ? last - (c.rows - 1 - row)
                                       : 2 * row - (row % 3 == 1 ? 1 : 0));
      }
      OwnSide& k = sides[2 * h];
      OwnSide& v = sides[2 * h + 1];
      const int n_tiers = static_cast<int>(c.key_codecs.size());
      for (int b = 0; b < c.n_key_bases * n_tiers; ++b) {
        if (b % n_tiers == 0) {
          bases.push_back(std::make_unique<OwnBasis>(c.keys, &random));
          if (c.pairs > 0) bases.back()->anchor(c.pairs, c.interleaved);
          if (!c.strips.empty()) bases.back()->mix_bits(c.strips);
        }
        k.bases.push_back(bases.back()->view);
      }
      const int n_value_tiers = static_cast<int>(c.value_codecs.size());
      for (int b = 0; b < c.n_value_bases * n_value_tiers; ++b) {
        if (b % n_value_tiers == 0) bases.push_back(std::make_unique<OwnBasis>(c.values, &random));
        v.bases.push_back(bases.back()->view);
      }
      k.fill(*cpu_, c.key_codecs.data(), n_tiers, false, c.keys.dim, c.sinks, c.key_pages, c.rows,
             positions[h], c.sinks, &random);
      v.fill(*cpu_, c.value_codecs.data(), n_value_tiers, true, c.values.dim, c.sinks,
             c.value_pages, c.rows, positions[h], c.sinks, &random);
      heads.push_back({k.view, v.view, c.rows, 0, c.sinks});
      if (c.gaps) heads.back().positions = positions[h].data();
    }
    const int n_heads = kHeads * c.group;
    const AttendParams params{.n_heads = n_heads,
                              .n_kv_heads = kHeads,
                              .key_dim = c.keys.dim,
                              .value_dim = c.values.dim,
                              .scale = 1 / std::sqrt(static_cast<float>(c.keys.dim)),
                              .window = c.window};
    const std::vector<float> q = random.normals(int64_t{c.n_queries} * n_heads * c.keys.dim);
    const auto run = [&](Backend& backend, std::vector<float>* log_sums) {
      const int64_t width = int64_t{n_heads} * c.values.dim;
      std::vector<float> out(static_cast<size_t>(c.n_queries * width), NAN);
      log_sums->assign(static_cast<size_t>(c.n_queries * n_heads), NAN);
      const AttendTask task{.q = {q.data(), c.n_queries, int64_t{n_heads} * c.keys.dim},
                            .heads = heads,
                            .first_pos = last - c.n_queries + 1,
                            .out = Mat(out.data(), c.n_queries, width),
                            .log_sums = log_sums->data()};
      backend.attend(params, {&task, 1});
      return out;
    };
    std::vector<float> expected_sums;
    std::vector<float> sums;
    const std::vector<float> out = run(*cpu_, &expected_sums);
    const std::vector<double> expected(out.begin(), out.end());
    const std::vector<float> found = run(*gpu_, &sums);
    EXPECT_FALSE(gpu_->was_on_host());
    // A coefficient of a query, a key and a value is each rounded to binary16 (2^-11), the former
    // after the query itself.
    EXPECT_LT(test::rms_error(found, expected), 3e-3);
    EXPECT_LT(test::relative_error(found, expected), 9e-3);
    for (size_t n = 0; n < sums.size(); ++n) EXPECT_NEAR(sums[n], expected_sums[n], 0.02) << n;
    check_mass(params, {.q = {q.data(), c.n_queries, int64_t{n_heads} * c.keys.dim},
                        .heads = heads,
                        .first_pos = last - c.n_queries + 1,
                        .log_sums = expected_sums.data(),
                        .mass = {}});
  }

  // What rows get of the queries.
  void check_mass(const AttendParams& params, MassTask task) {
    for (const MassOf what : {MassOf::sum, MassOf::most}) {
      const auto run = [&](Backend& backend) {
        std::vector<std::vector<float>> mass;
        std::vector<float*> heads;
        for (const HeadView& head : task.heads) {
          mass.emplace_back(static_cast<size_t>(head.n_rows), 0.01f);
        }
        for (auto& each : mass) heads.push_back(each.data());
        task.mass = heads;
        backend.attention_mass(params, what, {&task, 1});
        return mass;
      };
      const auto expected = run(*cpu_);
      const auto found = run(*gpu_);
      EXPECT_FALSE(gpu_->was_on_host());
      for (size_t h = 0; h < expected.size(); ++h) {
        const std::vector<double> own(expected[h].begin(), expected[h].end());
        EXPECT_LT(test::relative_error(found[h], own), 2e-2) << h;
      }
    }
  }

  std::unique_ptr<Backend> cpu_ = make_cpu_backend(2);
  std::unique_ptr<CudaBackend> gpu_;
};

std::vector<uint8_t> falling_bits(int n_strips) {
  std::vector<uint8_t> bits;
  for (int s = 0; s < n_strips; ++s) {
    bits.push_back(static_cast<uint8_t>(std::max(0, 8 - s * 10 / n_strips)));
  }
  return bits;
}

TEST_P(CudaAttendBasis, ReadsRecommendedCaches) {
  for (const int queries : {1, 3, 20}) {
    const std::string many = std::to_string(queries) + " queries";
    check({.n_queries = queries}, many);
    check({.strips = falling_bits(16), .n_queries = queries}, "mixed bits, " + many);
    check({.key_codecs = {keys_of(4), keys_of(2)},
           .value_codecs = {values_of(4), values_of(2)},
           .n_queries = queries},
          "tiers, " + many);
  }
  check({.pairs = 0, .n_queries = 2}, "keys that are not turned");
}

TEST_P(CudaAttendBasis, HeadSizesBlocksAndWeights) {
  for (const int dim : {80, 96, 128, 256}) {
    OwnBasis::Shape keys{dim, dim, dim, true};
    OwnBasis::Shape values{dim, dim % 32 == 0 ? dim : 16, dim % 32 == 0 ? dim : 16};
    check({.keys = keys,
           .values = values,
           .pairs = 16,
           .n_queries = 2,
           .rows = 200,
           .key_pages = 128,
           .value_pages = 128},
          "heads of " + std::to_string(dim));
    check({.keys = keys,
           .values = values,
           .pairs = 16,
           .n_queries = 7,
           .rows = 200,
           .key_pages = 64,
           .value_pages = 128},
          "heads of " + std::to_string(dim) + ", more queries");
  }
  for (const float weight : {1e-4f, 1e4f}) {
    check({.keys = {.int8 = true, .weight = weight}}, "weights of " + std::to_string(weight));
  }
  check({.keys = {64, 64, 48}, .values = {64, 32, 16}}, "fewer coefficients than values");
  check({.values = {.int8 = true}, .n_queries = 2}, "values of int8 lifts");
}

TEST_P(CudaAttendBasis, SeveralBasesPositionsAndWindows) {
  for (const int queries : {1, 20}) {
    check({.n_key_bases = 2, .n_value_bases = 3, .n_queries = queries}, "several bases");
    check({.interleaved = true, .gaps = true, .n_queries = queries}, "positions");
    check({.n_queries = queries, .window = 90}, "window");
    check({.n_queries = queries, .key_pages = 128, .value_pages = 290}, "values ahead of keys");
  }
  check({.group = 2, .rows = 1300, .key_pages = 1216, .value_pages = 1280}, "two parts");
}

TEST_P(CudaAttendBasis, RefusesWhatItDoesNotHave) {
  Random random(1);
  OwnBasis odd({.dim = 64, .block = 8, .block_width = 8}, &random);
  OwnSide side;
  side.bases.push_back(odd.view);
  const CodecSpec codec = values_of(4);
  const std::vector<int32_t> positions(64);
  side.fill(*cpu_, &codec, 1, true, 64, 0, 64, 64, positions, 0, &random);
  EXPECT_NE(side_refusal(side.view).find("found 8 as 8"), std::string::npos);
  EXPECT_EQ(gpu_->read_path(side.view, Precision::fast), ReadPath::host);
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaAttendBasis, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
