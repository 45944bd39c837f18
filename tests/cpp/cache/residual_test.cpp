// Rows that are the sum of a low-rank part and of codes of the rest.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/half.h"
#include "cache/io_testing.h"
#include "cache/projector_fixtures.h"

namespace kve {
namespace {

std::string canonical(std::string_view text) { return CacheSpec::parse(text).str(); }

TEST(Residual, CanonicalForms) {
  EXPECT_EQ(canonical("lowrank:rank=4,residual=coded+int2"),
            "lowrank:rank=4,segment=1024,residual=coded+int2:group=32,tail=64");
  EXPECT_EQ(canonical("k=lowrank:residual=fitted,coefficients=int8,segment=64+k=q4_0"),
            "k=lowrank:rank=32,segment=64,residual=fitted,coefficients=int8+k=q4_0+v=f16");
  EXPECT_EQ(canonical("lowrank:rank=4,residual=none,coefficients=f16+int2"),
            "lowrank:rank=4,segment=1024+int2:group=32,tail=64");
  const auto error = [](const char* text) { return message_of([&] { CacheSpec::parse(text); }); };
  EXPECT_TRUE(contains(error("lowrank:residual=coded"), "expected codes beside coefficients"));
  EXPECT_TRUE(contains(error("lowrank:residual=coded+int4+int2:older=99"), "found older="));
  EXPECT_TRUE(contains(error("lowrank:residual=x+int4"), "expected none, coded or fitted"));
  EXPECT_TRUE(contains(error("lowrank:coefficients=int8+int4"), "out of its range"));
  EXPECT_TRUE(contains(error("lowrank:basis=x,residual=coded+int4"), "no parameter 'residual'"));
  EXPECT_TRUE(contains(error("mpo:residual=coded+int4"), "has no parameter 'residual'"));
  const auto refusal = message_of(
      [] { KvCache(CacheSpec::parse("lowrank:rank=33,residual=coded+int4"), {{1, 32, 32, 0}}); });
  EXPECT_TRUE(contains(refusal, "at most key_dim 32, found 33")) << refusal;
}

const std::vector<LayerShape> kOneHead = {{1, 32, 32, 0}};

// The keys of the fixtures in a cache with segments of all three pages.
std::vector<float> shown(const std::string& residual, const std::string& more = "") {
  SealOnlyBackend backend;
  const std::vector<float> keys = read_projector_fixture<float>("keys.f32");
  KvCache cache(CacheSpec::parse("lowrank:rank=5,segment=192,residual=" + residual + more +
                                 "+int2:per=channel,group=64,tail=0"),
                kOneHead);
  const ConstMat rows(keys.data(), 192, 32);
  cache.append(backend, 0, rows, rows);
  cache.commit(backend, 192);
  EXPECT_EQ(held(cache, false), (Held{0, 192, 0}));
  EXPECT_EQ(cache.stats().bytes, cache.memory().live());
  return read_rows(cache, 0, 0, false);
}

double squares(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double{a[i]} - b[i], 2);
  return sum;
}

// Numpy computes coefficients and components without rounding them: rows differ by 2^-11 of
// coefficients (of up to about 700), and by a step of the codes where this decides between two.
TEST(Residual, AgreesWithNumpy) {
  const std::vector<float> keys = read_projector_fixture<float>("keys.f32");
  for (const char* kind : {"coded", "fitted"}) {
    SCOPED_TRACE(kind);
    const std::vector<float> wanted =
        read_projector_fixture<float>(std::string("residual_") + kind + ".f32");
    const double lost = squares(wanted, keys);
    EXPECT_LT(squares(shown(kind), wanted), 0.05 * lost);
    EXPECT_NEAR(squares(shown(kind), keys), lost, 0.02 * lost);
    // Coefficients in 8 bits are good enough: their steps are 1/255 of what they range over.
    EXPECT_LT(squares(shown(kind, ",coefficients=int8"), keys), 1.3 * lost);
  }
}

// Either order is better than codes or components alone.
TEST(Residual, BothPartsCount) {
  SealOnlyBackend backend;
  const std::vector<float> keys = read_projector_fixture<float>("keys.f32");
  const ConstMat rows(keys.data(), 192, 32);
  const auto lost = [&](const char* spec) {
    KvCache cache(CacheSpec::parse(spec), kOneHead);
    cache.append(backend, 0, rows, rows);
    cache.commit(backend, 192);
    return squares(read_rows(cache, 0, 0, false), keys);
  };
  const double codes = lost("int2:per=channel,group=64,tail=0");
  const double few = lost("lowrank:rank=5,segment=192+f16");
  for (const char* kind : {"coded", "fitted"}) {
    EXPECT_LT(squares(shown(kind), keys), 0.5 * codes) << kind;
    EXPECT_LT(squares(shown(kind), keys), 0.75 * few) << kind;
  }
}

// Codes, a cache line's rest, then 4 numbers of 16 bits for each of 64 tokens.
TEST(Residual, Bytes) {
  SealOnlyBackend backend;
  KvCache cache(CacheSpec::parse("lowrank:rank=4,segment=64,residual=coded+int2:tail=0"), kOneHead);
  Random random(1);
  run_pass(&cache, backend, &random, 128);
  const int codes = 64 * 32 * 2 / 8;
  const int scales = 64 * 4;
  EXPECT_EQ(cache.view(0)[0].k.pages[0].bytes, codes + scales + 64 * 4 * 2);
  EXPECT_EQ(cache.stats().codes, 4 * (codes + 64 * 4 * 2));
  EXPECT_EQ(cache.stats().scales, 4 * scales);
}

TEST(Residual, ForksTruncationAndSavedStates) {
  SealOnlyBackend backend;
  const std::vector<LayerShape> shapes = {{2, 32, 64, 0}, {1, 64, 32, 70}};
  const TokenRows tokens(shapes, 700, 2);
  for (const char* spec :
       {"lowrank:rank=4,segment=64,residual=coded+int2:tail=9",
        "lowrank:rank=6,segment=128,residual=fitted,coefficients=int8+int3:per=channel,group=64"}) {
    SCOPED_TRACE(spec);
    KvCache cache(CacheSpec::parse(spec), shapes);
    tokens.pass(&cache, backend, 400);
    cache.truncate(371);
    KvCache restored(cache.spec(), shapes);
    restored.load(cache.save());
    KvCache fork = cache.fork();
    for (KvCache* each : {&cache, &restored, &fork}) {
      for (const int n : {70, 1, 140}) tokens.pass(each, backend, n);
    }
    EXPECT_EQ(restored.save(), cache.save());
    EXPECT_EQ(fork.save(), cache.save());
    EXPECT_EQ(restored.stats().bytes, restored.memory().live());
  }
}

TEST(Residual, DamagedStatesAreRefused) {
  Corruption corruption("lowrank:rank=4,segment=64,residual=coded+int2:tail=0",
                        {{2, 32, 64, 0}, {1, 64, 32, 70}});
  const std::vector<std::byte>& good = corruption.good();
  EXPECT_FALSE(corruption.refuses(good));
  for (size_t size = 0; size < good.size(); size += size < 150 ? 1 : good.size() / 50) {
    EXPECT_TRUE(
        corruption.refuses({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size)}));
  }
  int refused = 0;
  Random random(3);
  for (size_t at = 0; at < good.size(); at += 23) {
    std::vector<std::byte> bytes = good;
    bytes[at] ^= static_cast<std::byte>(1 << random.bits() % 8);
    refused += corruption.refuses(bytes) ? 1 : 0;
  }
  EXPECT_GT(refused, 5);
}

}  // namespace
}  // namespace kve
