// DecoQuant's attention: queries are transformed by T_S once for every segment and meet the codes
// of T_L, sums of codes are transformed once, and no row is reconstructed (arXiv:2405.12591).
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/half.h"
#include "cache/cache_testing.h"
#include "cache/reference_attention.h"
#include "kernels/kernel_testing.h"

namespace kve {
namespace {

constexpr int kHeads = 6;
constexpr int kKvHeads = 2;
constexpr int kDim = 64;

// One head's coefficients of a page, scales included: [64][n_channels].
std::vector<float> coefficients_of(const SideView& side, const PageView& page) {
  std::vector<float> out(static_cast<size_t>(page.rows * side.n_channels));
  decode_rows(side.format, page.data, 0, page.rows, side.first_channel, side.n_channels, out.data(),
              side.n_channels);
  return out;
}

// T_S^T of a block: entry (j, c) is that of value j and coefficient c.
double small_tensor(const BasisView& basis, int j, int c) {
  return half_to_float(basis.lift[j * basis.block_width + c]);
}

// A query in the basis: block by block T_S q.
std::vector<double> transformed(const BasisView& basis, const float* query) {
  std::vector<double> out(static_cast<size_t>(basis.width));
  for (int i = 0; i < basis.width; ++i) {
    const int block = i / basis.block_width;
    for (int j = 0; j < basis.block; ++j) {
      out[static_cast<size_t>(i)] += small_tensor(basis, j, i % basis.block_width) *
                                     static_cast<double>(query[block * basis.block + j]);
    }
  }
  return out;
}

// Sums in the basis as values.
void add_transformed(const BasisView& basis, const std::vector<double>& sums, double* out) {
  for (int j = 0; j < basis.dim; ++j) {
    const int block = j / basis.block;
    for (int c = 0; c < basis.block_width; ++c) {
      out[j] += small_tensor(basis, j % basis.block, c) *
                sums[static_cast<size_t>(block * basis.block_width + c)];
    }
  }
}

// Attention of one query head in float64, all rows of the cache in pages.
std::vector<double> attention_in_codes(const HeadView& view, const float* query, double scale) {
  std::vector<double> weights;
  std::vector<double> in_basis;
  int basis = -1;
  int n_transforms = 0;
  double total = 0;
  for (const PageView& page : view.k.pages) {
    if (page.basis != basis) {
      in_basis = transformed(view.k.bases[page.basis], query);
      ++n_transforms;
    }
    basis = page.basis;
    const std::vector<float> rows = coefficients_of(view.k, page);
    for (int r = 0; r < page.rows; ++r) {
      double score = 0;
      for (int c = 0; c < view.k.n_channels; ++c) {
        score +=
            in_basis[static_cast<size_t>(c)] * rows[static_cast<size_t>(r * view.k.n_channels + c)];
      }
      weights.push_back(std::exp(scale * score));
      total += weights.back();
    }
  }
  EXPECT_EQ(n_transforms, basis + 1);  // one for each segment
  std::vector<double> out(static_cast<size_t>(view.v.width));
  std::vector<double> sums(static_cast<size_t>(view.v.n_channels));
  size_t at = 0;
  for (size_t p = 0; p < view.v.pages.size(); ++p) {
    const PageView& page = view.v.pages[p];
    const std::vector<float> rows = coefficients_of(view.v, page);
    for (int r = 0; r < page.rows; ++r, ++at) {
      for (int c = 0; c < view.v.n_channels; ++c) {
        sums[static_cast<size_t>(c)] +=
            weights[at] / total * rows[static_cast<size_t>(r * view.v.n_channels + c)];
      }
    }
    if (p + 1 < view.v.pages.size() && view.v.pages[p + 1].basis == page.basis) continue;
    add_transformed(view.v.bases[page.basis], sums, out.data());
    std::fill(sums.begin(), sums.end(), 0.0);
  }
  return out;
}

class DecoQuant : public ::testing::TestWithParam<std::string> {};

TEST_P(DecoQuant, AttendsInItsCodes) {
  const auto backend = make_cpu_backend(2, GetParam());
  for (const char* spec : {"mpo:block=16,segment=256+sym4:group=row,tail=0",
                           "mpo:block=16,segment=128+sym8:group=row,tail=0",
                           "mpo:block=32,segment=256+sym3:group=row,tail=0",
                           "mpo:block=64,segment=512+int4:group=row,tail=0",
                           "mpo:block=4x4,bonds=12x3,segment=256+sym4:group=row,tail=0"}) {
    SCOPED_TRACE(spec);
    KvCache cache(CacheSpec::parse(spec), {{kKvHeads, kDim, kDim, 0}});
    test::Random random(11);
    constexpr int kTokens = 512;
    std::vector<float> k = random.normals(kTokens * kKvHeads * kDim);
    std::vector<float> v = random.normals(kTokens * kKvHeads * kDim);
    // Channels of different size, some far from zero.
    for (size_t i = 0; i < k.size(); ++i) {
      k[i] = k[i] * (i % 7 == 3 ? 2.0f : 0.6f) + (i % kDim == 5 ? 1.5f : 0.0f);
      v[i] += i % kDim % 5 == 2 ? 1.0f : 0.0f;
    }
    cache.append(*backend, 0, ConstMat(k.data(), kTokens, kKvHeads * kDim),
                 ConstMat(v.data(), kTokens, kKvHeads * kDim));
    cache.commit(*backend, kTokens);
    ASSERT_EQ(held(cache, false), (Held{0, kTokens, 0}));
    // Codes are what attention of few queries reads.
    EXPECT_EQ(cache.read_path(*backend, Precision::fast), ReadPath::fused);
    const std::vector<float> q = random.normals(kHeads * kDim, 0.7f);
    std::vector<float> out(kHeads * kDim);
    const AttendTask task = {ConstMat(q.data(), 1, kHeads * kDim), cache.view(0), kTokens - 1,
                             Mat(out.data(), 1, kHeads * kDim)};
    AttendParams params = {.n_heads = kHeads,
                           .n_kv_heads = kKvHeads,
                           .key_dim = kDim,
                           .value_dim = kDim,
                           .scale = 1 / 8.0f};
    const std::vector<double> reconstructed = reference_attention(params, task);
    std::vector<double> in_codes;
    for (int h = 0; h < kHeads; ++h) {
      const HeadView& view = cache.view(0)[static_cast<size_t>(h / (kHeads / kKvHeads))];
      const std::vector<double> head = attention_in_codes(view, q.data() + h * kDim, 1 / 8.0);
      in_codes.insert(in_codes.end(), head.begin(), head.end());
    }
    double size = 0;
    for (const double x : reconstructed) size = std::max(size, std::abs(x));
    // The transform of queries and outputs is reconstruction, up to float64 rounding.
    for (size_t i = 0; i < in_codes.size(); ++i) {
      ASSERT_NEAR(in_codes[i], reconstructed[i], 1e-10 * size);
    }
    // What the backend makes of it: float32, or int8 queries and weights.
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      params.precision = precision;
      backend->attend(params, {&task, 1});
      const double bound = precision == Precision::exact ? 1e-5 : 0.02;
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(static_cast<double>(out[i]), in_codes[i], bound * size);
      }
    }
  }
}

// The tokens of a prompt are decomposed when it ends (section 5.5 of the paper's code: all of them
// at once), those that follow it once they fill a segment.
TEST(DecoQuantPrompt, ClosesItsLastSegment) {
  const auto backend = make_cpu_backend(2, "");
  const std::vector<LayerShape> shapes = {{2, 32, 32, 0}};
  KvCache cache(CacheSpec::parse("mpo:block=16,segment=128+sym8:group=row,tail=0,prefill=exact"),
                shapes);
  const TokenRows rows(shapes, 600, 5);
  rows.pass(&cache, *backend, 100, true);
  rows.pass(&cache, *backend, 100, true);
  EXPECT_EQ(held(cache, false), (Held{0, 0, 200}));
  rows.pass(&cache, *backend, 7);  // a segment of 128, one of 64, and less than a page
  EXPECT_EQ(held(cache, false), (Held{0, 192, 15}));
  EXPECT_EQ(cache.view(0)[0].k.pages[1].basis, 0);
  EXPECT_EQ(cache.view(0)[0].k.pages[2].basis, 1);
  std::vector<float> shown(207 * 32);
  cache.read_keys(0, 0, Mat(shown.data(), 207, 32));
  const ConstMat given = rows.k(0, 0, 207);
  float largest = 0;
  for (int r = 0; r < 207; ++r) {
    for (int c = 0; c < 32; ++c) largest = std::max(largest, std::abs(given.row(r)[c]));
  }
  for (int r = 0; r < 207; ++r) {
    for (int c = 0; c < 32; ++c) {
      // Half a step of 1/127, stretched by what T_S does to single channels.
      ASSERT_NEAR(shown[static_cast<size_t>(r * 32 + c)], given.row(r)[c], 0.02f * largest);
    }
  }
  for (int i = 0; i < 112; ++i) rows.pass(&cache, *backend, 1);
  EXPECT_EQ(held(cache, false), (Held{0, 192, 127}));
  rows.pass(&cache, *backend, 8);  // drafted tokens are no prompt
  EXPECT_EQ(held(cache, false), (Held{0, 320, 7}));
  rows.pass(&cache, *backend, 70);  // another prompt
  EXPECT_EQ(held(cache, false), (Held{0, 384, 13}));
  KvCache restored(cache.spec(), shapes);
  restored.load(cache.save());
  EXPECT_EQ(restored.save(), cache.save());
}

INSTANTIATE_TEST_SUITE_P(Isa, DecoQuant, ::testing::ValuesIn(test::available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace kve
