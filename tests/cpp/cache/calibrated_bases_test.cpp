// Caches whose bases come from a file, and files that are not what they should be.
#include "cache/calibrated_bases.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/half.h"
#include "cache/anchor.h"
#include "cache/bases_testing.h"
#include "cache/cache_testing.h"
#include "cache/reference_attention.h"
#include "kernels/kernel_testing.h"

namespace kve {
namespace {

using test::bases_of;
using test::BasesContent;
using test::TemporaryFolder;
using test::write_bases;

std::shared_ptr<const Rotation> rotation(int dim, bool interleaved) {
  Rotation out;
  out.interleaved = interleaved;
  for (int i = 0; i < dim / 2; ++i) out.frequencies.push_back(std::pow(100.0, -2.0 * i / dim));
  return std::make_shared<const Rotation>(out);
}

// Of two layers, whose heads are joined in pairs.
std::vector<LayerShape> shapes() {
  return {{2, 32, 32, 0, rotation(32, true)}, {4, 32, 16, 0, rotation(32, true)}};
}

class CalibratedBasesTest : public ::testing::Test {
 protected:
  std::string write(const BasesContent& content, const char* name = "bases.gguf") {
    write_bases(content, folder_ / name);
    return (folder_ / name).string();
  }
  std::string spec(const std::string& parameters, const std::string& codec) {
    return "lowrank:basis=" + write(bases_of(shapes(), 2)) + "," + parameters + "+" + codec;
  }
  TemporaryFolder folder_;
};

// Rows that the leading components of every group describe, keys rotated to their positions.
std::vector<float> group_rows(Random* random, const BasesContent& bases, size_t layer,
                              const LayerShape& shape, bool values, int rank, int first, int n) {
  const int dim = values ? shape.value_dim : shape.key_dim;
  const int size = static_cast<int>(bases.group) * dim;
  std::vector<float> out(static_cast<size_t>(n * shape.n_kv_heads * dim));
  const Mat rows(out.data(), n, int64_t{shape.n_kv_heads} * dim);
  BasisView view;
  view.frequencies = shape.rotation->frequencies.data();
  view.n_pairs = static_cast<int32_t>(shape.rotation->frequencies.size());
  view.interleaved = shape.rotation->interleaved;
  for (int r = 0; r < n; ++r) {
    for (int g = 0; g * size < rows.cols; ++g) {
      const std::vector<float>& basis = bases.rows(layer, values, g);
      for (int c = 0; c < rank; ++c) {
        const auto coefficient = static_cast<float>(random->uniform() * 2 - 1);
        for (int j = 0; j < size; ++j) {
          rows.row(r)[g * size + j] += coefficient * basis[static_cast<size_t>(c * size + j)];
        }
      }
    }
    for (int head = 0; head < shape.n_kv_heads && !values; ++head) {
      rotate(rows.columns(int64_t{head} * dim, dim).block(r, 1), view, first + r, 1);
    }
  }
  return out;
}

double largest_error(const std::vector<float>& found, const std::vector<float>& wanted) {
  double largest = found.size() == wanted.size() ? 0 : INFINITY;
  for (size_t i = 0; i < found.size() && i < wanted.size(); ++i) {
    largest = std::max(largest, std::abs(double{found[i]} - wanted[i]));
  }
  return largest;
}

// One layer's keys and values of a rank that the cache keeps come back as they were.
void expect_kept(const std::string& spec, const BasesContent& bases, const LayerShape& shape,
                 Backend& backend, int rank, double tolerance) {
  KvCache cache(CacheSpec::parse(spec), {shape});
  Random random(3);
  std::vector<float> rows[2];
  for (const int n : {1, 130, 1, 70}) {
    const int first = cache.n_tokens();
    const std::vector<float> k = group_rows(&random, bases, 0, shape, false, rank, first, n);
    const std::vector<float> v = group_rows(&random, bases, 0, shape, true, rank, first, n);
    cache.append(backend, 0, ConstMat(k.data(), n, int64_t{shape.n_kv_heads} * shape.key_dim),
                 ConstMat(v.data(), n, int64_t{shape.n_kv_heads} * shape.value_dim));
    cache.commit(backend, n);
    rows[0].insert(rows[0].end(), k.begin(), k.end());
    rows[1].insert(rows[1].end(), v.begin(), v.end());
  }
  for (const bool values : {false, true}) {
    const int dim = values ? shape.value_dim : shape.key_dim;
    for (int head = 0; head < shape.n_kv_heads; ++head) {
      std::vector<float> wanted;
      for (int r = 0; r < cache.n_tokens(); ++r) {
        const auto from = rows[values ? 1 : 0].begin() + (r * shape.n_kv_heads + head) * dim;
        wanted.insert(wanted.end(), from, from + dim);
      }
      const std::vector<float> found = read_rows(cache, 0, head, values);
      EXPECT_LT(largest_error(found, wanted), tolerance) << head << ' ' << values;
    }
  }
  EXPECT_EQ(cache.stats().bytes, cache.memory().live());
  EXPECT_GT(cache.stats().bases, 0);
}

TEST_F(CalibratedBasesTest, KeepWhatHeadsHaveInCommon) {
  for (const bool interleaved : {true, false}) {
    const LayerShape shape = {4, 32, 32, 0, rotation(32, interleaved)};
    const BasesContent bases = bases_of({shape}, 2);
    const std::string basis = "lowrank:basis=" + write(bases);
    std::vector<std::unique_ptr<Backend>> backends;
    backends.push_back(std::make_unique<SealOnlyBackend>());
    for (const std::string& isa : test::available_isas()) {
      backends.push_back(make_cpu_backend(2, isa));
    }
    for (const auto& backend : backends) {
      SCOPED_TRACE(backend->name());
      // A coefficient is a sum of 64 products in float32; numbers are below 8.
      expect_kept(basis + ",rank=20+f32", bases, shape, *backend, 20, 2e-5);
      // More components than a head has values: all that there are.
      expect_kept(basis + ",rank=64+f32", bases, shape, *backend, 64, 2e-5);
      // Coefficients below 1 in binary16: each is off by 2^-12 at most, 64 of them by 8 times that.
      expect_kept(basis + ",rank=64+f16", bases, shape, *backend, 64, 64 * 0x1p-12 / 8);
      // In steps of 2 / 255.
      expect_kept(basis + ",rank=64+int8:group=16,tail=9,sinks=3", bases, shape, *backend, 64,
                  64 * 1.0 / 255 / 8);
    }
  }
}

TEST_F(CalibratedBasesTest, KeepWhatOneHeadHas) {
  const LayerShape shape = {2, 64, 16, 0, rotation(64, true)};
  const BasesContent bases = bases_of({shape}, 1);
  const std::string spec = "lowrank:basis=" + write(bases) + ",rank=16+f32";
  SealOnlyBackend portable;
  expect_kept(spec, bases, shape, portable, 16, 2e-5);
  expect_kept(spec, bases, shape, *make_cpu_backend(1), 16, 2e-5);
}

// Attention to 331 tokens of random rows, which the bases describe in part only, against its
// definition.
void expect_attention(const CacheSpec& spec, const LayerShape& shape, Backend& backend) {
  KvCache cache(spec, {shape});
  Random random(5);
  for (const int n : {100, 1, 200, 30}) run_pass(&cache, backend, &random, n);
  for (const int n : {1, 30}) {
    const std::vector<float> q = random_values(&random, int64_t{n} * 8 * 32);
    std::vector<float> out(static_cast<size_t>(n) * 8 * 16);
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      const AttendParams params = {.n_heads = 8,
                                   .n_kv_heads = 4,
                                   .key_dim = 32,
                                   .value_dim = 16,
                                   .scale = 0.2f,
                                   .precision = precision};
      const AttendTask task = {ConstMat(q.data(), n, 8 * 32), cache.view(0), 331 - n,
                               Mat(out.data(), n, 8 * 16)};
      backend.attend(params, {&task, 1});
      const std::vector<double> wanted = reference_attention(params, task);
      double largest = 0;
      for (size_t i = 0; i < out.size(); ++i) {
        largest = std::max(largest, std::abs(out[i] - wanted[i]));
      }
      // Means of values below 1. Fast: queries, weights or rows are rounded to 8 bits or bf16.
      EXPECT_LT(largest, precision == Precision::exact ? 2e-5 : 1e-2) << n;
    }
  }
}

TEST_F(CalibratedBasesTest, AttentionSeesTheRowsThatTheyDescribe) {
  const LayerShape shape = {4, 32, 16, 0, rotation(32, true)};
  const std::string basis = "lowrank:basis=" + write(bases_of({shape}, 2)) + ",";
  // Of the 64 numbers of two heads' keys, the 32 of their values, and how they are coded.
  const char* const kCases[][3] = {{"rank=20", "rank=20", "f16"},
                                   {"rank=48", "rank=32", "f16"},
                                   {"rank=64", "rank=32", "f32"},
                                   {"rank=32", "rank=16", "int8:group=16,tail=20,sinks=4"},
                                   {"rank=64", "rank=32", "q8_0"},
                                   {"energy=70", "energy=70", "lm4:group=head,tail=0"},
                                   {"share=50", "share=50", "int4:per=channel,group=64"}};
  for (const auto& [keys, values, codec] : kCases) {
    const CacheSpec spec =
        CacheSpec::parse("k=" + basis + keys + "+v=" + basis + values + "+" + codec);
    for (const std::string& isa : test::available_isas()) {
      SCOPED_TRACE(spec.str() + " " + isa);
      expect_attention(spec, shape, *make_cpu_backend(2, isa));
    }
  }
}

TEST_F(CalibratedBasesTest, HoldFewerBytes) {
  SealOnlyBackend backend;
  Random random(1);
  const auto filled = [&](const std::string& text) {
    KvCache cache(CacheSpec::parse(text), shapes());
    run_pass(&cache, backend, &random, 640);
    return cache.stats();
  };
  // 10 pages of 64 tokens: of 16 coefficients for every group of two heads, in binary16.
  const CacheStats stats = filled(spec("rank=16", "f16"));
  EXPECT_EQ(stats.codes, 2 * 640 * (16 + 16 + 2 * (16 + 16)));
  EXPECT_EQ(stats.tail, 0);
  EXPECT_EQ(stats.bytes, stats.codes + stats.bases + stats.meta);
  EXPECT_EQ(stats.f16_bytes, 2 * 640 * (64 + 64 + 128 + 64));
  // A share is of the joined values, in steps of 32: 32 of 64, or 32 of 32.
  EXPECT_EQ(filled(spec("share=50", "f16")).codes, 2 * 640 * (32 + 32 + 2 * (32 + 32)));
  EXPECT_EQ(filled(spec("share=1", "f16")).codes, 2 * 640 * (32 + 32 + 2 * (32 + 32)));
  EXPECT_EQ(filled(spec("share=80", "f16")).codes, 2 * 640 * (64 + 64 + 2 * (64 + 32)));
  // Energies are 64, 63, ..., 1: of their sum 2080, the first 10 hold 595; of 32, ..., 1 and 528,
  // the first 5 hold 150.
  EXPECT_EQ(filled(spec("energy=28", "f16")).codes, 2 * 640 * (10 + 10 + 2 * (10 + 5)));
  EXPECT_EQ(filled(spec("energy=100", "f16")).codes, 2 * 640 * (64 + 64 + 2 * (64 + 32)));
}

TEST_F(CalibratedBasesTest, ForksAndSavedStatesGoOnAlike) {
  SealOnlyBackend backend;
  const std::string text = spec("rank=16", "int8:group=16,tail=20,sinks=4");
  KvCache cache(CacheSpec::parse(text), shapes());
  Random random(2);
  run_pass(&cache, backend, &random, 300);
  cache.truncate(271);
  KvCache restored(cache.spec(), shapes());
  restored.load(cache.save());
  KvCache fork = cache.fork();
  EXPECT_EQ(restored.save(), cache.save());
  EXPECT_EQ(restored.stats().bytes, restored.memory().live());
  for (KvCache* each : {&cache, &restored, &fork}) {
    Random own(9);
    for (const int n : {70, 1, 40}) run_pass(each, backend, &own, n);
  }
  EXPECT_EQ(fork.save(), cache.save());
  EXPECT_EQ(restored.save(), cache.save());
  // Other bases under the same name: what was saved has no meaning in them.
  const std::vector<std::byte> saved = cache.save();
  BasesContent other = bases_of(shapes(), 2);
  other.tensors[0].values[5] *= -1;
  write(other);
  KvCache later(CacheSpec::parse(text), shapes());
  EXPECT_TRUE(contains(message_of<FormatError>([&] { later.load(saved); }), "checksum"));
}

TEST_F(CalibratedBasesTest, RefuseFilesThatDoNotFit) {
  const auto error = [&](const std::function<void(BasesContent*)>& change, auto kind,
                         const char* parameters = "rank=16") {
    BasesContent content = bases_of(shapes(), 2);
    change(&content);
    const std::string text = "lowrank:basis=" + write(content) + "," + parameters;
    using Kind = decltype(kind);
    return message_of<Kind>([&] { KvCache(CacheSpec::parse(text), shapes()); });
  };
  const FormatError format("");
  const ConfigError config("");
  const auto nothing = [](BasesContent*) {};
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->architecture = "llama"; }, format),
                       "expected bases that `kvengine calibrate --bases` wrote, found 'llama'"));
  EXPECT_TRUE(
      contains(error([](BasesContent* c) { c->version = 2; }, UnsupportedError("")), "version 2"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->layers = 3; }, config), "2 layers"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->layers = 0; }, format), "1 to 1024"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->group = 0; }, format), "group"));
  EXPECT_TRUE(
      contains(error([](BasesContent* c) { c->group = 3; }, config), "no multiple of the 3"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->group = 1u << 31; }, format), "group"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->checksum_change = 1; }, format), "damaged"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->tensors.erase(c->tensors.begin()); }, format),
                       "blk.0.keys.0"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->tensors[1].name = "x"; }, format), "energy"));
  EXPECT_TRUE(contains(error(
                           [](BasesContent* c) {
                             c->tensors[0].values[70] = std::numeric_limits<float>::quiet_NaN();
                           },
                           format),
                       "finite"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->tensors[0].values[64] = 2; }, format),
                       "rows of length 1, found row 1"));
  EXPECT_TRUE(
      contains(error([](BasesContent* c) { c->tensors[1].values[3] = 70; }, format), "fall"));
  EXPECT_TRUE(
      contains(error([](BasesContent* c) { c->tensors[1].values[63] = -1; }, format), "negative"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->tensors[0].shape = {32, 128}; }, format),
                       "F32 rows of 64 values, found F32 [32, 128]"));
  EXPECT_TRUE(contains(error([](BasesContent* c) { c->tensors[0].shape = {64 * 64}; }, format),
                       "rows of 64"));
  EXPECT_TRUE(contains(error(nothing, config, "rank=65"), "at most its 64 components"));
  // Values of layer 1 have 32 components.
  EXPECT_TRUE(contains(error(nothing, config, "rank=40"), "blk.1.values.0"));
  EXPECT_TRUE(contains(message_of<IoError>([&] {
                         KvCache(CacheSpec::parse("palu:basis=" + (folder_ / "none").string()),
                                 shapes());
                       }),
                       "no such file"));
}

TEST_F(CalibratedBasesTest, RefuseDamagedBytes) {
  const std::vector<LayerShape> layers = {{2, 4, 2, 0, rotation(4, true)}};
  const std::string path = write(bases_of(layers, 2));
  const std::string good = test::file_text(path);
  const CacheSpec spec = CacheSpec::parse("lowrank:basis=" + path + ",energy=60+f16");
  KvCache(spec, layers);
  int refused = 0;
  const auto load = [&](const std::string& bytes) {
    folder_.write("bases.gguf", bytes);
    try {
      KvCache(spec, layers);
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      ++refused;
    }
  };
  for (size_t size = 0; size < good.size(); ++size) load(good.substr(0, size));
  EXPECT_GE(refused, static_cast<int>(good.size()) - 32);  // the last tensor is padded to 32 bytes
  refused = 0;
  Random random(4);
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.bits() % 8));
    load(bytes);
  }
  // Padding and the model's number are read by nobody here.
  EXPECT_GT(refused, static_cast<int>(good.size()) / 2);
}

TEST(CalibratedSpec, NamesItsFileOnce) {
  const auto text = [](const char* spec) { return CacheSpec::parse(spec).str(); };
  EXPECT_EQ(text("lowrank:basis=/a/b.gguf"), "lowrank:basis=/a/b.gguf,share=50+f16");
  EXPECT_EQ(text("palu:basis=x"), "lowrank:basis=x,share=50+f16");
  EXPECT_EQ(text("k=lowrank:basis=x,energy=90+k=int4:group=16 + v=palu:basis=x"),
            "k=lowrank:basis=x,energy=90+k=int4:group=16,tail=64+v=lowrank:basis=x,share=50+v=f16");
  EXPECT_EQ(text("f16 + k=lowrank:rank=8,basis=x,layers=2"),
            "f16+k=lowrank:basis=x,rank=8,layers=2+k=f16:layers=2");
  const auto error = [](const char* spec) { return message_of([&] { CacheSpec::parse(spec); }); };
  EXPECT_TRUE(contains(error("palu"), "needs basis=FILE"));
  EXPECT_TRUE(contains(error("palu:rank=3"), "no parameters but basis"));
  EXPECT_TRUE(contains(error("k=palu:basis=x+v=palu:basis=y"), "differs from an earlier stage"));
  EXPECT_TRUE(contains(error("lowrank:basis=x,rank=3,share=9"), "one of rank, share and energy"));
  EXPECT_TRUE(contains(error("lowrank:basis=x,segment=64"), "no parameter 'segment'"));
  EXPECT_TRUE(contains(error("lowrank:energy=64"), "no parameter 'energy'"));
  EXPECT_TRUE(contains(error("lowrank:basis=x,energy=101"), "1 to 100"));
  EXPECT_TRUE(contains(error("lowrank:basis="), "expected a value"));
  EXPECT_TRUE(contains(error("klt:basis=x"), "values: klt: expected bases of keys"));
  EXPECT_TRUE(contains(error("k=klt:basis=x,fit=64"), "no parameter 'fit'"));
  EXPECT_EQ(text("k=klt:basis=x+k=int4:tail=0"), "k=klt:basis=x+k=int4:group=32,tail=0+v=f16");
  EXPECT_TRUE(contains(error(("palu:basis=" + std::string(5000, 'x')).c_str()), "4096"));
  EXPECT_TRUE(contains(error("palu:basis=a\nb"), "without blanks"));
  CacheSpec made = CacheSpec::parse("palu:basis=x");
  made.bases = "a b";
  EXPECT_TRUE(contains(made.error(), "without blanks"));
  made.bases = "";
  EXPECT_TRUE(contains(made.error(), "found none"));
  made = CacheSpec::parse("f16");
  made.bases = "x";
  EXPECT_TRUE(contains(made.error(), "expected no file"));
}

}  // namespace
}  // namespace kve
