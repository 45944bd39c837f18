#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "cache/io_testing.h"

namespace kve {
namespace {

std::vector<LayerShape> shapes() { return {{2, 32, 64, 0}, {1, 64, 32, 70}}; }

KvCache filled(const char* spec, int n) { return filled_cache(spec, shapes(), n); }

const char* const kSpecs[] = {"f32",
                              "f16",
                              "bf16",
                              "q8_0",
                              "q4_0",
                              "int8",
                              "int4:tail=0",
                              "k=int4:tail=5+v=q8_0",
                              "int3:group=16,outliers=10%,tail=0",
                              "int4:tail=5+int2:older=3"};

TEST(KvCacheIo, RestoredCachesContinueBitIdentically) {
  for (const char* spec : kSpecs) {
    for (const int n : {0, 1, 64, 200, 500}) {
      SCOPED_TRACE(spec);
      KvCache cache = filled(spec, n);
      const std::vector<std::byte> bytes = cache.save();
      KvCache restored(cache.spec(), shapes());
      restored.load(bytes);
      EXPECT_EQ(restored.n_tokens(), n);
      EXPECT_EQ(restored.save(), bytes);
      EXPECT_EQ(restored.stats().bytes, restored.memory().live());
      SealOnlyBackend backend;
      Random one(2);
      Random two(2);
      for (const int m : {1, 70, 1}) {
        run_pass(&cache, backend, &one, m);
        run_pass(&restored, backend, &two, m);
      }
      EXPECT_EQ(restored.save(), cache.save());
    }
  }
}

// What a truncated page or a reused allocation holds behind its rows is not part of the state.
TEST(KvCacheIo, BytesDependOnTheRowsOnly) {
  for (const char* spec : {"q8_0", "int4:tail=0"}) {
    KvCache a = filled(spec, 100);
    KvCache b = filled(spec, 100);
    SealOnlyBackend backend;
    Random random(3);
    run_pass(&b, backend, &random, 50);
    b.truncate(100);
    EXPECT_EQ(a.save(), b.save());
  }
}

TEST(KvCacheIo, LoadReplacesWhatWasThereAndForksKeepTheirs) {
  KvCache cache = filled("int4", 300);
  const std::vector<std::byte> small = filled("int4", 70).save();
  KvCache fork = cache.fork();
  const std::vector<std::byte> before = fork.save();
  cache.load(small);
  EXPECT_EQ(cache.n_tokens(), 70);
  EXPECT_EQ(cache.save(), small);
  EXPECT_EQ(fork.save(), before);
}

TEST(KvCacheIo, OtherSpecsAndShapesAreRefused) {
  const std::vector<std::byte> bytes = filled("int4", 100).save();
  const auto refusal = [&](const char* spec, std::vector<LayerShape> layers) -> std::string {
    KvCache cache(CacheSpec::parse(spec), std::move(layers));
    try {
      cache.load(bytes);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(refusal("f16", shapes()),
            "cache state: expected spec 'f16', found 'int4:group=32,tail=64'");
  EXPECT_EQ(refusal("int4:tail=65", shapes()),
            "cache state: expected spec 'int4:group=32,tail=65', found 'int4:group=32,tail=64'");
  EXPECT_EQ(refusal("int4", {{2, 32, 64, 0}}),
            "cache state: number of layers: expected 1, found 2");
  EXPECT_EQ(refusal("int4", {{2, 32, 64, 0}, {1, 64, 64, 70}}),
            "cache state: layer 1: value_dim: expected 64, found 32");
  EXPECT_EQ(refusal("int4", {{1, 32, 64, 0}, {1, 64, 32, 70}}),
            "cache state: layer 0: n_kv_heads: expected 1, found 2");
  EXPECT_EQ(refusal("int4", {{2, 32, 64, 0}, {1, 64, 32, 0}}),
            "cache state: layer 1: window: expected 0, found 70");
  EXPECT_EQ(refusal("int4", shapes()), "accepted");
}

TEST(KvCacheIo, TruncatedAndExtendedStatesAreRefused) {
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    Corruption corruption(spec, shapes());
    const std::vector<std::byte>& good = corruption.good();
    int cuts = 0;
    for (size_t size = 0; size < good.size(); size += size < 150 ? 1 : good.size() / 100, ++cuts) {
      std::vector<std::byte> bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size));
      EXPECT_TRUE(corruption.refuses(bytes)) << size << " bytes of " << good.size();
    }
    EXPECT_GT(cuts, 200);
    std::vector<std::byte> longer = good;
    longer.push_back(std::byte{0});
    EXPECT_TRUE(corruption.refuses(longer));
    EXPECT_FALSE(corruption.refuses(good));
  }
}

TEST(KvCacheIo, WrongFieldsAreRefused) {
  const int32_t wrong[] = {-1, INT32_MIN, INT32_MAX, 1 << 30, 64, 0x7f000000, 1'000'000'000};
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    Corruption corruption(spec, shapes());
    const std::vector<std::byte>& good = corruption.good();
    // Version, spec length, layers, shapes, tokens, first position, rows of the first side.
    const size_t spec_size = CacheSpec::parse(spec).str().size();
    std::vector<size_t> fields = {0, 4};
    for (size_t i = 0; i < 1 + 8 + 1 + 1 + 2 + 4; ++i) fields.push_back(8 + spec_size + 4 * i);
    for (const size_t at : fields) {
      int32_t old = 0;
      std::memcpy(&old, good.data() + at, sizeof(old));
      for (const int32_t value : wrong) {
        if (value == old) continue;
        std::vector<std::byte> bytes = good;
        std::memcpy(bytes.data() + at, &value, sizeof(value));
        EXPECT_TRUE(corruption.refuses(bytes)) << value << " at " << at;
      }
      for (const int delta : {-64, -1, 1, 64}) {
        const int32_t value = old + delta;
        std::vector<std::byte> bytes = good;
        std::memcpy(bytes.data() + at, &value, sizeof(value));
        EXPECT_TRUE(corruption.refuses(bytes)) << value << " at " << at;
      }
    }
  }
}

TEST(KvCacheIo, RandomCorruptionsAreRefusedOrWhole) {
  for (const char* spec : {"f16", "int4", "k=int4:tail=5+v=q8_0"}) {
    SCOPED_TRACE(spec);
    Corruption corruption(spec, shapes());
    Random random(5);
    int refused = 0;
    for (int i = 0; i < 200; ++i) {
      std::vector<std::byte> bytes = corruption.good();
      for (int n = 1 + i % 4; n > 0; --n) {
        // Half of them in the fields at the front.
        const size_t range = i % 2 == 0 ? 120 : bytes.size();
        bytes[random.bits() % range] = static_cast<std::byte>(random.bits() & 0xff);
      }
      refused += corruption.refuses(bytes) ? 1 : 0;
    }
    EXPECT_GT(refused, 50);
    EXPECT_LT(refused, 200);
  }
}

TEST(KvCacheIo, ValuesThatAreNotFiniteAreRefused) {
  for (const char* spec : {"f32", "f16", "bf16", "q8_0", "int4", "int8:tail=0"}) {
    SCOPED_TRACE(spec);
    Corruption corruption(spec, shapes());
    // The state ends with values of the last side: its tail, or a page with 9 rows of 32 values, of
    // which the last value, or the last scale or zero, becomes NaN.
    std::vector<std::byte> bytes = corruption.good();
    const CodecSpec& codec = CacheSpec::parse(spec).v.codec;
    size_t behind = 0;
    if (CacheSpec::parse(spec).v.tail == 0) {
      const size_t value = codec.id == CodecId::f32 ? 4 : 2;
      behind = codec.is_float() ? (kPageTokens - 9) * 32 * value : (kPageTokens - 9) * 2;
    }
    const size_t at = bytes.size() - behind - 1;
    bytes[at] = std::byte{0x7f};
    bytes[at - 1] = std::byte{0xff};
    EXPECT_TRUE(corruption.refuses(bytes));
  }
}

}  // namespace
}  // namespace kve
