// Keys in the Karhunen-Loeve transform of a file.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/half.h"
#include "cache/anchor.h"
#include "cache/bases_testing.h"
#include "cache/cache_testing.h"
#include "cache/project/allocate_bits.h"
#include "kernels/kernel_testing.h"

namespace kve {
namespace {

using test::bases_of;
using test::BasesContent;
using test::TemporaryFolder;
using test::write_bases;

std::vector<LayerShape> shapes() {
  auto rotation = std::make_shared<Rotation>();
  for (int i = 0; i < 16; ++i) rotation->frequencies.push_back(std::pow(100.0, -i / 16.0));
  return {{2, 64, 64, 0, rotation}, {4, 32, 16, 0, rotation}};
}

// Transforms of every head: any rows at right angles, energies that fall by a factor, and weights
// of channels between 1/4 and 4.
BasesContent content() {
  BasesContent out = bases_of(shapes(), 2);
  Random random(5);
  for (size_t layer = 0; layer < shapes().size(); ++layer) {
    const int dim = shapes()[layer].key_dim;
    for (int head = 0; head < shapes()[layer].n_kv_heads; ++head) {
      std::vector<float> energy;
      std::vector<float> metric;
      for (int c = 0; c < dim; ++c) {
        energy.push_back(static_cast<float>((head + 1) * std::pow(0.85, c)));
        metric.push_back(static_cast<float>(std::exp2(4 * random.uniform() - 2)));
      }
      const std::string name = message("blk.", layer, ".klt.", head);
      const Matrix rows = orthogonal_matrix(dim, 100 * layer + static_cast<uint64_t>(head));
      out.tensors.push_back({name, {dim, dim}, {rows.values.begin(), rows.values.end()}});
      out.tensors.push_back({name + ".energy", {dim}, energy});
      out.tensors.push_back({name + ".metric", {dim}, metric});
    }
  }
  return out;
}

const std::vector<float>& tensor(const BasesContent& content, const std::string& name) {
  for (const BasesContent::Tensor& each : content.tensors) {
    if (each.name == name) return each.values;
  }
  throw Error("no tensor " + name);
}

// Keys [n, 2 * 64] of layer 0 from position first_pos on, whose components are as strong as the
// file says and turned by the position of their page: bits then go where they count.
std::vector<float> fitting_keys(const BasesContent& file, int sinks, int first_pos, int n,
                                Random* random) {
  std::vector<float> out(static_cast<size_t>(n) * 128);
  const Mat rows(out.data(), n, 128);
  BasisView turn;
  const auto rotation = shapes()[0].rotation;
  turn.frequencies = rotation->frequencies.data();
  turn.n_pairs = static_cast<int32_t>(rotation->frequencies.size());
  for (int r = 0; r < n; ++r) {
    const int page = std::max(0, first_pos + r - sinks) / kPageTokens * kPageTokens + sinks;
    for (int head = 0; head < 2; ++head) {
      const std::string name = message("blk.0.klt.", head);
      const std::vector<float>& vectors = tensor(file, name);
      const Mat row = rows.columns(head * 64, 64).block(r, 1);
      for (size_t c = 0; c < 64; ++c) {
        const double strength = 3 * std::sqrt(tensor(file, name + ".energy")[c]);
        const double z = strength * (2 * random->uniform() - 1);
        for (size_t j = 0; j < 64; ++j) {
          row.row(0)[j] += static_cast<float>(z * vectors[c * 64 + j] /
                                              std::sqrt(tensor(file, name + ".metric")[j]));
        }
      }
      rotate(row, turn, page, 1);
    }
  }
  return out;
}

class CalibratedKlt : public ::testing::Test {
 protected:
  std::string write(const BasesContent& content) {
    write_bases(content, folder_ / "bases.gguf");
    return (folder_ / "bases.gguf").string();
  }
  CacheSpec spec(const std::string& codec) {
    return CacheSpec::parse("k=klt:basis=" + write(content()) + "+k=" + codec +
                            "+v=int8:group=16,tail=0");
  }
  TemporaryFolder folder_;
};

TEST_F(CalibratedKlt, NothingWaitsForAFit) {
  SealOnlyBackend backend;
  KvCache cache(spec("int8:per=channel,group=64,tail=0,sinks=4"), shapes());
  EXPECT_FALSE(cache.wants_queries(0));
  const TokenRows tokens(shapes(), 300, 1);
  tokens.pass(&cache, backend, 70);
  EXPECT_EQ(held(cache, false), (Held{4, 64, 2}));
  EXPECT_EQ(cache.tokens_until_seal(), 62);
  // Most components have 6 bits or more: a step is a few hundredths of a component's range of about
  // 60 (channels are up to 5).
  const std::vector<float> found = read_rows(cache, 0, 1, false);
  double error = 0;
  double size = 0;
  for (int r = 0; r < 70; ++r) {
    for (int c = 0; c < 64; ++c) {
      const double exact = tokens.k(0, 0, 70).row(r)[64 + c];
      error += std::pow(found[static_cast<size_t>(r * 64 + c)] - exact, 2);
      size += exact * exact;
    }
  }
  EXPECT_LT(error / size, 1e-3);
  EXPECT_EQ(cache.stats().bytes, cache.memory().live());
  EXPECT_GT(cache.stats().bases, (2 * 64 * 64 + 4 * 32 * 32) * 2);
}

TEST_F(CalibratedKlt, BasesAreThoseOfTheFile) {
  const BasesContent file = content();
  for (const int bits : {3, 6}) {
    KvCache cache(spec("int" + std::to_string(bits) + ":per=channel,group=64"), shapes());
    for (size_t layer = 0; layer < 2; ++layer) {
      const int dim = shapes()[layer].key_dim;
      std::vector<std::vector<double>> energies;
      for (int head = 0; head < shapes()[layer].n_kv_heads; ++head) {
        const auto& energy = tensor(file, message("blk.", layer, ".klt.", head, ".energy"));
        energies.emplace_back(energy.begin(), energy.end());
      }
      const auto strip_bits = allocate_bits(energies, bits);
      for (int head = 0; head < shapes()[layer].n_kv_heads; ++head) {
        const std::string name = message("blk.", layer, ".klt.", head);
        const std::vector<float>& rows = tensor(file, name);
        const std::vector<float>& metric = tensor(file, name + ".metric");
        const BasisView& basis = cache.view(static_cast<int>(layer))[head].k.bases[0];
        ASSERT_EQ(basis.anchor, kPageTokens);
        for (int j = 0; j < dim; ++j) {
          EXPECT_EQ(basis.row[j], metric[j]);
          for (int c = 0; c < dim; ++c) {
            const double wanted = rows[c * dim + j] / std::sqrt(metric[j]);
            const int at = j * dim + c;
            // int8: to half a step of 1/127 of the largest, which is 2 at most.
            const double stored = bits <= 4 ? double{basis.lift8_scale[j]} * basis.lift8[at]
                                            : double{half_to_float(basis.lift[at])};
            EXPECT_NEAR(stored, wanted, bits <= 4 ? 1.0 / 127 : 1e-3);
          }
        }
        const std::vector<uint8_t> found(basis.strip_bits, basis.strip_bits + dim / 4);
        EXPECT_EQ(found, strip_bits[head]);
      }
    }
  }
}

// Also where rows are coded on arrival, and old pages anew.
TEST_F(CalibratedKlt, AttentionReadsCodes) {
  const auto backend = make_cpu_backend(2);
  for (const char* codec :
       {"int4:per=channel,group=64,tail=9,sinks=4", "int5:tail=0", "lm4:group=head,tail=0,sinks=1",
        "int8:per=channel,group=64+k=int3:per=channel,group=64,older=100"}) {
    SCOPED_TRACE(codec);
    KvCache cache(spec(codec), shapes());
    const TokenRows tokens(shapes(), 410, 2);
    Random random(7);
    for (const int n : {100, 1, 249, 57, 3}) {
      const int first = cache.n_tokens();
      const std::vector<float> k = fitting_keys(content(), cache.spec().sinks, first, n, &random);
      cache.append(*backend, 0, ConstMat(k.data(), n, 128), tokens.v(0, first, n));
      cache.append(*backend, 1, tokens.k(1, first, n), tokens.v(1, first, n));
      cache.commit(*backend, n);
    }
    EXPECT_EQ(cache.read_path(*backend, Precision::fast), ReadPath::fused);
    std::vector<std::vector<float>> outs;
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      std::vector<float>& out = outs.emplace_back(2 * 4 * 64);
      const AttendParams params = {.n_heads = 4,
                                   .n_kv_heads = 2,
                                   .key_dim = 64,
                                   .value_dim = 64,
                                   .scale = 0.125f,
                                   .precision = precision};
      const AttendTask task = {tokens.q(0, 408, 2), cache.view(0), 408, Mat(out.data(), 2, 256)};
      backend->attend(params, {&task, 1});
    }
    // Queries and weights are rounded to 1/127 of the largest, where scores are about 1.
    double error = 0;
    double size = 0;
    for (size_t i = 0; i < outs[0].size(); ++i) {
      error += std::pow(double{outs[1][i]} - outs[0][i], 2);
      size += std::pow(outs[0][i], 2);
    }
    EXPECT_LT(std::sqrt(error / size), 0.02);
  }
}

TEST_F(CalibratedKlt, ForksAndSavedStatesGoOnAlike) {
  SealOnlyBackend backend;
  const CacheSpec text = spec("int4:per=channel,group=64,tail=20,sinks=4");
  const TokenRows tokens(shapes(), 500, 3);
  KvCache cache(text, shapes());
  tokens.pass(&cache, backend, 300);
  cache.truncate(271);
  KvCache restored(text, shapes());
  restored.load(cache.save());
  KvCache fork = cache.fork();
  for (KvCache* each : {&cache, &restored, &fork}) {
    for (const int n : {70, 1, 40}) tokens.pass(each, backend, n);
  }
  EXPECT_EQ(fork.save(), cache.save());
  EXPECT_EQ(restored.save(), cache.save());
  EXPECT_EQ(restored.stats().bytes, restored.memory().live());
  cache.truncate(0);
  tokens.pass(&cache, backend, 200);
  EXPECT_EQ(held(cache, false), (Held{4, 128, 68}));
  BasesContent other = content();
  other.tensors.back().values[0] += 1;
  const std::vector<std::byte> saved = cache.save();
  write(other);
  KvCache later(text, shapes());
  EXPECT_TRUE(contains(message_of<FormatError>([&] { later.load(saved); }), "checksum"));
}

TEST_F(CalibratedKlt, RefusesFilesThatDoNotFit) {
  const auto error = [&](const std::function<void(BasesContent::Tensor*)>& change,
                         const std::string& name) {
    BasesContent changed = content();
    for (BasesContent::Tensor& each : changed.tensors) {
      if (each.name == name) change(&each);
    }
    const std::string text = "k=klt:basis=" + write(changed) + "+k=int4:per=channel,group=64";
    return message_of<FormatError>([&] { KvCache(CacheSpec::parse(text), shapes()); });
  };
  using Tensor = BasesContent::Tensor;
  const std::string rows = "blk.1.klt.3";
  EXPECT_TRUE(contains(error([](Tensor* t) { t->name = "x"; }, rows), "blk.1.klt.3"));
  EXPECT_TRUE(contains(error([](Tensor* t) { t->name = "x"; }, rows + ".metric"), ".metric"));
  EXPECT_TRUE(contains(error([](Tensor* t) { t->name = "x"; }, rows + ".energy"), ".energy"));
  EXPECT_TRUE(contains(error([](Tensor* t) { t->values[40] = 2; }, rows), "found row 1"));
  EXPECT_TRUE(contains(error([](Tensor* t) { t->shape = {16, 64}; }, rows), "rows of 32 values"));
  EXPECT_TRUE(contains(error([](Tensor* t) { t->values[3] = 9; }, rows + ".energy"), "fall"));
  for (const float bad : {0.0f, -1.0f, 1e13f, std::numeric_limits<float>::denorm_min()}) {
    EXPECT_TRUE(contains(error([&](Tensor* t) { t->values[7] = bad; }, rows + ".metric"),
                         "expected mean squares"));
  }
  EXPECT_TRUE(contains(error([](Tensor* t) { t->values[7] = NAN; }, rows + ".metric"), "finite"));
  // A file of before there were transforms.
  const std::string old = "k=klt:basis=" + write(bases_of(shapes(), 2)) + "+k=int4";
  EXPECT_TRUE(contains(message_of<FormatError>([&] { KvCache(CacheSpec::parse(old), shapes()); }),
                       "blk.0.klt.0"));
}

}  // namespace
}  // namespace kve
