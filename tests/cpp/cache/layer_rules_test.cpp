// Stages of a cache spec that are for some layers or heads only.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "cache/cache_testing.h"
#include "cache/spec.h"

namespace kve {
namespace {

std::string canonical(std::string_view text) { return CacheSpec::parse(text).str(); }

// What keys and values of layer `layer` of 6 are.
std::string at(std::string_view text, int layer) {
  const CacheSpec spec = CacheSpec::parse(text);
  return spec.side(layer, 6, 0, false).str() + " " + spec.side(layer, 6, 0, true).str();
}

TEST(LayerRules, CanonicalForms) {
  EXPECT_EQ(canonical("q4_0 + q8_0:first=2"), "q4_0+q8_0:first=2");
  EXPECT_EQ(canonical("q8_0:first=2 + q4_0"), "q4_0+q8_0:first=2");
  EXPECT_EQ(canonical("q8_0:first=2,last=1"), "f16+q8_0:first=2,last=1");
  EXPECT_EQ(canonical("q4_0+k=f16:layers=3+v=q8_0:layers=3-3"),
            "q4_0+k=f16:layers=3+v=q8_0:layers=3");
  EXPECT_EQ(canonical("q4_0+k=q8_0:layers=1-2+v=q8_0:layers=1-2"), "q4_0+q8_0:layers=1-2");
  EXPECT_EQ(canonical("q4_0+hadamard:last=1"), "q4_0+hadamard:last=1+f16:last=1");
  // What the whole cache shares stands with the first side that is coded.
  EXPECT_EQ(canonical("int4:layers=0,sinks=4"), "f16+int4:group=32,tail=64,sinks=4,layers=0");
  EXPECT_EQ(canonical("q4_0 + q8_0:first=1,sinks=4"), "q4_0:sinks=4+q8_0:first=1");
}

TEST(LayerRules, RoundTrip) {
  for (const char* text :
       {"best3+best8:first=2,last=1+k=f16:layers=5", "kivi2+v=f32:layers=0-3", "v=q8_0:last=6",
        "decoquant4+rtn8:first=1,prefill=exact", "k=q4_0+v=q8_0+turbo3:layers=2"}) {
    SCOPED_TRACE(text);
    std::string error;
    try {
      const CacheSpec spec = CacheSpec::parse(text);
      EXPECT_EQ(CacheSpec::parse(spec.str()), spec);
    } catch (const ConfigError& found) {
      error = found.what();
    }
    // A preset has no parameters but those of layers.
    EXPECT_EQ(!error.empty(), std::string_view(text).starts_with("decoquant4")) << error;
  }
}

TEST(LayerRules, WhoGetsWhat) {
  const char* spec = "q4_0 + q8_0:first=2,last=1 + k=f16:layers=1-4 + v=f32:layers=5";
  EXPECT_EQ(at(spec, 0), "q8_0 q8_0");
  EXPECT_EQ(at(spec, 1), "f16 q8_0");  // the later rule, for keys
  EXPECT_EQ(at(spec, 2), "f16 q4_0");
  EXPECT_EQ(at(spec, 4), "f16 q4_0");
  EXPECT_EQ(at(spec, 5), "q8_0 f32");
  // A rule replaces a side as a whole: there is no rotation left.
  EXPECT_EQ(at("hadamard+int4+int8:first=1", 0), "int8:group=32,tail=64 int8:group=32,tail=64");
}

TEST(LayerRules, BadOnesAreRefused) {
  for (const char* text :
       {"q4_0:first=0", "q4_0:first=-1", "q4_0:last=x", "q4_0:layers=", "q4_0:layers=3-2",
        "q4_0:layers=-2", "q4_0:layers=2-", "q4_0:layers=1-2-3", "q4_0:layers=5000",
        "q4_0:first=2000", "q4_0:first=1+q8_0:first=1", "q4_0:first=1,first=1",
        "q4_0:sinks=3+q8_0:first=1,sinks=4"}) {
    EXPECT_THROW(CacheSpec::parse(text), ConfigError) << text;
  }
  CacheSpec spec;
  spec.rules.push_back({{.begin = 3, .end = 1}, {}, SideSpec{}, std::nullopt});
  EXPECT_FALSE(spec.error().empty());
}

TEST(LayerRules, LayersThatAModelDoesNotHave) {
  const std::vector<LayerShape> shapes(3, LayerShape{1, 32, 32, 0});
  for (const char* text : {"q4_0:first=4", "q4_0:last=4", "q4_0:layers=3", "q4_0:layers=0-3"}) {
    const std::string error = message_of([&] { KvCache(CacheSpec::parse(text), shapes); });
    EXPECT_TRUE(contains(error, "3 layers, found 4")) << error;
  }
  EXPECT_NO_THROW(KvCache(CacheSpec::parse("q4_0:first=3+q8_0:layers=2"), shapes));
}

// Bytes of codes and scales of n tokens, all layers together.
int64_t coded_bytes(const char* spec, int n_layers, int n) {
  SealOnlyBackend backend;
  Random random(7);
  KvCache cache(CacheSpec::parse(spec), std::vector<LayerShape>(n_layers, {2, 64, 64, 0}));
  run_pass(&cache, backend, &random, n);
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.bytes, cache.memory().live());
  return stats.codes + stats.scales;
}

TEST(LayerRules, EveryLayerCostsWhatItsOwnSpecDoes) {
  const int64_t one4 = coded_bytes("q4_0", 1, 256);
  const int64_t one8 = coded_bytes("q8_0", 1, 256);
  EXPECT_LT(one4, one8);
  EXPECT_EQ(coded_bytes("q4_0+q8_0:first=2,last=1", 5, 256), 2 * one4 + 3 * one8);
  EXPECT_EQ(coded_bytes("q4_0+k=q8_0:layers=1-3+v=q8_0:layers=1", 4, 256),
            one4 + one8 + 2 * (one4 + one8) / 2);
}

// Two layers of `heads` heads of 32 values; keys and values of both are `rows`.
KvCache two_layers(const char* spec, int heads, const std::vector<float>& rows) {
  SealOnlyBackend backend;
  KvCache cache(CacheSpec::parse(spec), std::vector(2, LayerShape{heads, 32, 32, 0}));
  const int n = static_cast<int>(rows.size()) / (32 * heads);
  const ConstMat mat(rows.data(), n, 32 * heads);
  for (int layer = 0; layer < 2; ++layer) cache.append(backend, layer, mat, mat);
  cache.commit(backend, n);
  return cache;
}

void expect_restored(const KvCache& cache, int heads) {
  KvCache again(cache.spec(), std::vector(2, LayerShape{heads, 32, 32, 0}));
  again.load(cache.save());
  EXPECT_EQ(again.save(), cache.save());
}

TEST(LayerRules, ReadAndSavedPerLayer) {
  Random random(9);
  const std::vector<float> rows = random_values(&random, 70 * 32);
  const KvCache cache = two_layers("int2:tail=0+f32:layers=1", 1, rows);
  EXPECT_EQ(read_rows(cache, 1, 0, false), rows);
  EXPECT_NE(read_rows(cache, 0, 0, false), rows);
  expect_restored(cache, 1);
}

TEST(HeadRules, CanonicalForms) {
  EXPECT_EQ(canonical("q4_0+q8_0:heads=0-2"), "q4_0+q8_0:heads=0-2");
  EXPECT_EQ(canonical("q8_0:heads=1-1+q4_0"), "q4_0+q8_0:heads=1");
  EXPECT_EQ(canonical("q4_0+k=f16:heads=2,first=1"), "q4_0+k=f16:first=1,heads=2");
  EXPECT_EQ(canonical("int3+int4:layers=1-2,heads=0+hadamard:heads=0,layers=1-2+f32:heads=0"),
            "int3:group=32,tail=64+hadamard:layers=1-2,heads=0+int4:group=32,tail=64,layers=1-2,"
            "heads=0+f32:heads=0");
  for (const char* text : {"best3+best4:heads=1", "kivi2+k=kivi4:heads=0-1,last=3"}) {
    const CacheSpec spec = CacheSpec::parse(text);
    EXPECT_EQ(CacheSpec::parse(spec.str()), spec);
  }
  for (const char* text : {"q4_0:heads=", "q4_0:heads=-1", "q4_0:heads=2-1", "q4_0:heads=1024",
                           "q4_0:heads=1,heads=1", "q4_0:heads=0+q8_0:heads=0"}) {
    EXPECT_THROW(CacheSpec::parse(text), ConfigError) << text;
  }
}

TEST(HeadRules, WhoGetsWhat) {
  const CacheSpec spec = CacheSpec::parse("q4_0+q8_0:heads=1+k=f16:first=1,heads=1-2");
  const auto keys = [&](int layer, int head) { return spec.side(layer, 3, head, false).str(); };
  EXPECT_EQ(keys(0, 0), "q4_0");
  EXPECT_EQ(keys(0, 1), "f16");
  EXPECT_EQ(keys(0, 2), "f16");
  EXPECT_EQ(keys(1, 1), "q8_0");
  EXPECT_EQ(keys(1, 2), "q4_0");
  EXPECT_EQ(spec.side(0, 3, 1, true).str(), "q8_0");
}

TEST(HeadRules, HeadsThatCannotDifferAreRefused) {
  const std::vector<LayerShape> shapes = {{3, 32, 32, 0}, {2, 32, 32, 0}};
  const auto error = [&](const char* text) {
    return message_of([&] { KvCache(CacheSpec::parse(text), shapes); });
  };
  EXPECT_TRUE(contains(error("q4_0+q8_0:heads=2"), "within the 2 of layer 1, found 3"));
  EXPECT_NO_THROW(KvCache(CacheSpec::parse("q4_0+q8_0:heads=2,first=1"), shapes));
  EXPECT_TRUE(
      contains(error("int4:tail=8+int4:tail=9,heads=1"), "kv head 1 would be sealed apart"));
  EXPECT_TRUE(contains(error("int4+int4:per=channel,heads=0"), "sealed apart"));
  EXPECT_TRUE(contains(error("q4_0+hadamard:heads=0+q8_0:heads=0"), "sealed apart"));
  EXPECT_TRUE(contains(error("sym4:group=row,tail=0+sym8:group=row,tail=0,heads=1"),
                       "its heads share pages"));
  EXPECT_TRUE(contains(error("sym4:group=row,tail=0+sym8:group=head,tail=0,heads=1"), "kv head 1"));
  EXPECT_NO_THROW(KvCache(CacheSpec::parse("f16+q8_0:heads=1"), shapes));
}

TEST(HeadRules, EveryHeadCostsWhatItsOwnSpecDoes) {
  const int64_t both4 = coded_bytes("q4_0", 1, 256);
  const int64_t both8 = coded_bytes("q8_0", 1, 256);
  EXPECT_EQ(coded_bytes("q4_0+q8_0:heads=1", 4, 256), 2 * (both4 + both8));
  EXPECT_EQ(coded_bytes("q4_0+k=q8_0:heads=0,layers=1", 2, 256),
            both4 + both4 + (both8 - both4) / 4);
}

// Components share bits among the heads of one mean: two heads of 2 and 6 bits cost what two
// caches of such heads do.
TEST(HeadRules, HeadsOfAKltHaveTheirOwnMeanOfBits) {
  const auto spec = [](int a, int b) {
    const auto stage = [](int bits) {
      return "int" + std::to_string(bits) + ":per=channel,group=64,tail=8";
    };
    return "klt:fit=64+" + stage(a) + "+klt:fit=64,heads=1+" + stage(b) + ",heads=1";
  };
  const auto bytes = [&](int a, int b) { return coded_bytes(spec(a, b).c_str(), 1, 400); };
  EXPECT_NEAR(static_cast<double>(bytes(2, 6)), static_cast<double>(bytes(2, 2) + bytes(6, 6)) / 2,
              0.02 * static_cast<double>(bytes(6, 6)));
  EXPECT_LT(bytes(2, 6), bytes(4, 5));
}

TEST(HeadRules, RowsAndSavedStatesOfEveryHead) {
  Random random(9);
  const std::vector<float> rows = random_values(&random, 70 * 64);
  KvCache cache = two_layers("int2:tail=0+f32:heads=1", 2, rows);
  const std::vector<float> first = read_rows(cache, 1, 0, false);
  const std::vector<float> second = read_rows(cache, 1, 1, true);
  for (size_t i = 0; i < second.size(); ++i) {
    ASSERT_EQ(second[i], rows[i / 32 * 64 + 32 + i % 32]);
    ASSERT_NEAR(first[i], rows[i / 32 * 64 + i % 32], 0.34f);  // half of a step of a range of 2
  }
  EXPECT_NE(first[5], rows[5]);
  expect_restored(cache, 2);
  cache.truncate(33);
  EXPECT_EQ(cache.rows(1), 33);
}

}  // namespace
}  // namespace kve
