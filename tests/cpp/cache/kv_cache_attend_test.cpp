// Attention over caches of every projector and codec against float64.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "cache/cache_testing.h"
#include "cache/reference_attention.h"
#include "cache/registry.h"

namespace kve {
namespace {

struct Geometry {
  int n_heads;
  int n_kv_heads;
  int dim;
  int window;
};

// f32 sums of up to a few hundred terms, lifted by sums of up to 256 and weighted by scores of up
// to about 10, whose own error of about 1e-6 is the weights'.
constexpr double kBound = 3e-5;
// Queries, rows and weights rounded to 8 bits or more (attend_test.cpp), scores up to about 10.
constexpr double kRoundedBound = 0.04;

// The largest difference over the largest value.
double error_of(const std::vector<float>& found, const std::vector<double>& expected) {
  double worst = 0;
  double size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(static_cast<double>(found[i]) - expected[i]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    size = std::max(size, std::abs(expected[i]));
  }
  return worst / size;
}

// Attention of the n tokens last appended.
void check_attention(const KvCache& cache, Backend& backend, const Geometry& g, int n,
                     Random* random) {
  const std::vector<float> q = random_values(random, int64_t{n} * g.n_heads * g.dim);
  std::vector<float> out(q.size());
  AttendParams params = {.n_heads = g.n_heads,
                         .n_kv_heads = g.n_kv_heads,
                         .key_dim = g.dim,
                         .value_dim = g.dim,
                         .scale = 0.7f / std::sqrt(static_cast<float>(g.dim)),
                         .window = g.window};
  const AttendTask task = {ConstMat(q.data(), n, int64_t{g.n_heads} * g.dim), cache.view(0),
                           cache.n_tokens(), Mat(out.data(), n, int64_t{g.n_heads} * g.dim)};
  const std::vector<double> expected = reference_attention(params, task);
  backend.attend(params, {&task, 1});
  EXPECT_LT(error_of(out, expected), kBound) << n << " queries";
  params.precision = Precision::fast;
  backend.attend(params, {&task, 1});
  EXPECT_LT(error_of(out, expected), kRoundedBound) << n << " queries, fast";
}

void check_cache(const CacheSpec& spec, const Geometry& g, Backend& backend, uint64_t seed) {
  Rotation rotation;
  rotation.interleaved = seed % 2 == 0;
  for (int i = 0; i < g.dim / 4; ++i) rotation.frequencies.push_back(std::pow(0.7, i));
  const std::vector<LayerShape> shapes = {
      {g.n_kv_heads, g.dim, g.dim, g.window, std::make_shared<Rotation>(rotation)}};
  const TokenRows tokens(shapes, 330, seed);
  Random random(seed);
  KvCache cache(spec, shapes);
  for (const int n : {150, 100}) tokens.pass(&cache, backend, n);
  for (const int n : {33, 1}) {
    tokens.append(&cache, backend, n);
    check_attention(cache, backend, g, n, &random);
    cache.commit(backend, n);
  }
  EXPECT_EQ(cache.stats().bytes, cache.memory().live());
  // What Python reads is what attention sees, but for f32 sums.
  const HeadView& head = cache.view(0).back();
  const ReferenceRows keys(head.k, head);
  const std::vector<float> found = read_rows(cache, 0, g.n_kv_heads - 1, false);
  double worst = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const auto dim = static_cast<size_t>(g.dim);
    const double expected = keys.row(static_cast<int>(i / dim))[i % dim];
    worst = std::max(worst, std::abs(static_cast<double>(found[i]) - expected));
  }
  EXPECT_LT(worst, 1e-5 * 10);
}

const char* const kProjectors[] = {"",
                                   "hadamard+",
                                   "rotation:seed=3+",
                                   "mpo:block=16,segment=64+",
                                   "lowrank:rank=32,segment=64+",
                                   "klt:fit=64,anchor=64+",
                                   "klt:fit=128,anchor=1+",
                                   "klt:fit=64,anchor=0+"};
constexpr size_t kNProjectors = std::size(kProjectors);

// A codec, in one of the ways of scaling where it has several.
std::string codec_stage(const CodecEntry& entry, size_t i) {
  constexpr const char* kWays[] = {"", ":per=channel,group=32", ":group=row,scale=log8",
                                   ":group=16,channels=scaled", ":group=head,channels=centred"};
  return std::string(entry.name) + (entry.is_free ? kWays[i % std::size(kWays)] : "");
}

// The stages of one side, with the tail of the i-th case.
std::string side_text(const std::string& side, const std::string& projector,
                      const std::string& codec, size_t i) {
  const std::string stages = (projector.empty() ? "" : side + projector) + side + codec;
  if (find_codec(codec) != nullptr && find_codec(codec)->spec.is_float()) return stages;
  constexpr const char* kTails[] = {"tail=0",           "tail=17",          "tail=64,seal=window",
                                    "tail=40,seal=row", "tail=0,seal=page", "tail=70"};
  const char* sign = codec.find(':') == std::string::npos ? ":" : ",";
  const bool window = contains(kTails[i % std::size(kTails)], "window");
  const bool segments = contains(projector, "segment");
  return stages + sign + kTails[window && segments ? 0 : i % std::size(kTails)];
}

// Whether the geometry carries the stages; else construction must say why not.
bool fits(const SideSpec& side, const Geometry& g) {
  using Kind = ProjectorSpec::Kind;
  const CodecSpec& codec = side.codec;
  const Kind kind = side.projector.kind;
  const int coefficients = kind == Kind::lowrank ? side.projector.rank : g.dim;
  if (codec.is_float()) return true;
  if (codec.per == Per::token && codec.group > 0 && coefficients % codec.group != 0) return false;
  const bool own_basis = kind == Kind::lowrank || kind == Kind::klt;
  return codec.group != kWholeRow || g.n_kv_heads == 1 || !own_basis;
}

// Every projector with every codec, on keys and on values; tails, sinks, heads, head sizes and
// windows take turns.
TEST(KvCacheAttend, EveryProjectorWithEveryCodec) {
  const auto backend = make_cpu_backend(2);
  const auto scalar = make_cpu_backend(1, "scalar");
  const std::span<const CodecEntry> codecs = cache_codecs();
  const Geometry geometries[] = {{2, 2, 64, 0},  {6, 2, 80, 0},  {4, 1, 96, 0}, {3, 3, 128, 70},
                                 {2, 1, 256, 0}, {4, 4, 80, 70}, {4, 2, 64, 70}};
  size_t done = 0;
  size_t refused = 0;
  for (size_t c = 0; c < codecs.size(); ++c) {
    for (size_t p = 0; p < kNProjectors; ++p) {
      const size_t i = c * kNProjectors + p;
      const std::string k_codec = codec_stage(codecs[c], c + p);
      const std::string v_codec = codec_stage(codecs[(c * 7 + p) % codecs.size()], c + p / 2);
      const std::string text = side_text("k=", kProjectors[p], k_codec, i) + "+" +
                               side_text("v=", kProjectors[(p + c) % kNProjectors], v_codec, i / 6);
      SCOPED_TRACE(text);
      CacheSpec spec = CacheSpec::parse(text);
      constexpr int kSinks[] = {0, 4, 63, 1};
      if (!spec.k.codec.is_float() || !spec.v.codec.is_float()) spec.sinks = kSinks[i % 4];
      ASSERT_EQ(CacheSpec::parse(spec.str()), spec);
      const Geometry& g = geometries[(i * 5 + c) % std::size(geometries)];
      if (!fits(spec.k, g) || !fits(spec.v, g)) {
        const std::vector<LayerShape> shapes = {{g.n_kv_heads, g.dim, g.dim, g.window}};
        EXPECT_TRUE(contains(message_of([&] { KvCache(spec, shapes); }), "does not fit layer 0:"));
        ++refused;
        continue;
      }
      check_cache(spec, g, i % 8 == 3 ? *scalar : *backend, i);
      if (HasFatalFailure()) return;
      ++done;
    }
  }
  EXPECT_GT(done, codecs.size() * kNProjectors / 2);
  EXPECT_GT(refused, 0u);
}

// Rows that are the sum of codes and of a few coefficients.
TEST(KvCacheAttend, CodesBesideCoefficients) {
  const auto backend = make_cpu_backend(2);
  const auto scalar = make_cpu_backend(1, "scalar");
  const Geometry geometries[] = {{6, 2, 64, 0}, {4, 1, 96, 0}, {3, 3, 128, 90}, {2, 1, 256, 0}};
  size_t seed = 0;
  for (const char* text :
       {"lowrank:rank=4,segment=64,residual=coded+int2:tail=9",
        "lowrank:rank=7,segment=128,residual=fitted,coefficients=int8+int4:per=channel,group=64",
        "k=lowrank:rank=32,segment=64,residual=coded,coefficients=int8+k=lm3:tail=0,sinks=3+v=int8",
        "k=int4+v=lowrank:rank=1,segment=64,residual=fitted+v=int3:group=head,outliers=3%"}) {
    for (const Geometry& g : geometries) {
      SCOPED_TRACE(text);
      check_cache(CacheSpec::parse(text), g, seed % 2 == 0 ? *scalar : *backend, seed);
      if (HasFatalFailure()) return;
      ++seed;
    }
  }
}

// Pages of several codecs in one side.
TEST(KvCacheAttend, PagesOfDifferentAges) {
  const auto backend = make_cpu_backend(2);
  const auto scalar = make_cpu_backend(1, "scalar");
  const Geometry geometries[] = {{6, 2, 64, 0}, {4, 1, 96, 0}, {3, 3, 128, 90}, {2, 1, 256, 0}};
  size_t seed = 0;
  for (const char* text :
       {"int8:tail=9+int4:older=64+int1:older=150", "hadamard+q8_0:tail=1,sinks=3+lm3:older=100",
        "k=klt:fit=64+k=int6:per=channel,group=64,tail=0+k=int2:per=channel,group=64,older=77+"
        "v=e4m3:tail=64,seal=window+v=nf4:group=16,older=64",
        "klt:fit=64,anchor=1+int5:per=channel,group=32,tail=2+lm4:older=99",
        "mpo:segment=64+sym8:group=row,tail=0+sym3:group=16,older=100",
        "lowrank:rank=32,segment=64+int8:tail=0+int4:outliers=2%,older=130"}) {
    for (const Geometry& g : geometries) {
      SCOPED_TRACE(text);
      check_cache(CacheSpec::parse(text), g, seed % 2 == 0 ? *scalar : *backend, seed);
      if (HasFatalFailure()) return;
      ++seed;
    }
  }
}

}  // namespace
}  // namespace kve
