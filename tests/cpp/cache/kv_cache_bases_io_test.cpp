// Saving and loading caches whose rows are in bases.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cache/io_testing.h"
#include "cache/registry.h"

namespace kve {
namespace {

std::vector<LayerShape> shapes() {
  const auto rotation = std::make_shared<Rotation>(Rotation{{1, 0.5, 0.25, 0.01}, false});
  return {{2, 32, 32, 0, rotation}, {1, 64, 32, 70, rotation}};
}

const char* const kProjectors[] = {"hadamard",
                                   "rotation:seed=7",
                                   "mpo:block=16,segment=64",
                                   "lowrank:rank=16,segment=128",
                                   "klt:fit=64,anchor=64",
                                   "klt:fit=128,anchor=1",
                                   "klt:fit=64,anchor=0",
                                   "think:ratio=0.5,window=9"};

// Caches with fitted bases, as corruption meets them.
const char* const kFitted[] = {
    "mpo:block=16,segment=64+sym4:group=row,tail=0",
    "lowrank:rank=32,segment=64+q4_0:sinks=5",
    "think:ratio=0.3,window=9+int4:tail=5,sinks=3",
    "klt:fit=64,anchor=64+int3:per=channel,group=64,scale=log8,tail=20,sinks=3",
    "k=klt:fit=64,anchor=1+k=f16+v=mpo:block=8,segment=128+v=lm4:group=head,tail=2",
    "klt:fit=64,anchor=64+int3:per=channel,group=32,outliers=5%,tail=9"};

TEST(KvCacheBasesIo, EveryProjectorWithEveryCodecContinuesBitIdentically) {
  SealOnlyBackend backend;
  size_t i = 0;
  for (const char* projector : kProjectors) {
    for (const CodecEntry& codec : cache_codecs()) {
      std::string text = std::string(projector) + "+" + std::string(codec.name);
      if (codec.is_free) text += i % 2 == 0 ? ":group=16" : ":per=channel,group=32,sinks=9";
      if (codec.spec.group == 32 && !codec.is_free &&
          (contains(text, "lowrank") || contains(text, "think"))) {
        continue;
      }
      SCOPED_TRACE(text);
      const int n = std::vector<int>{0, 1, 100, 300}[i++ % 4];
      KvCache cache = filled_cache(text.c_str(), shapes(), n);
      if (n == 300) cache.truncate(277);
      const std::vector<std::byte> bytes = cache.save();
      KvCache restored(cache.spec(), shapes());
      restored.load(bytes);
      ASSERT_EQ(restored.save(), bytes);
      ASSERT_EQ(restored.stats().bytes, restored.memory().live());
      for (const bool values : {false, true}) {
        ASSERT_EQ(read_rows(restored, 0, 1, values), read_rows(cache, 0, 1, values));
      }
      Random one(2);
      Random two(2);
      for (const int m : {1, 70, 1}) {
        run_pass(&cache, backend, &one, m);
        run_pass(&restored, backend, &two, m);
      }
      ASSERT_EQ(restored.save(), cache.save());
    }
  }
}

TEST(KvCacheBasesIo, CutStatesAreRefused) {
  for (const char* spec : kFitted) {
    SCOPED_TRACE(spec);
    Corruption corruption(spec, shapes());
    const std::vector<std::byte>& good = corruption.good();
    for (size_t size = 0; size < good.size(); size += 1 + good.size() / 150) {
      const auto end = good.begin() + static_cast<std::ptrdiff_t>(size);
      EXPECT_TRUE(corruption.refuses({good.begin(), end})) << size << " bytes";
    }
    std::vector<std::byte> longer = good;
    longer.push_back(std::byte{0});
    EXPECT_TRUE(corruption.refuses(longer));
    EXPECT_FALSE(corruption.refuses(good));
  }
}

// Rows, bases and pages of the first side: every field, with every value that no cache can have.
TEST(KvCacheBasesIo, WrongFieldsAreRefused) {
  for (const char* text : kFitted) {
    SCOPED_TRACE(text);
    Corruption corruption(text, shapes());
    const std::vector<std::byte>& good = corruption.good();
    const CacheSpec spec = CacheSpec::parse(text);
    // Version, spec, shapes, tokens, first position, number of queries of layer 0. Their sums are
    // there until the basis is.
    const size_t counts = 4 + 4 + spec.str().size() + 4 + 2 * 16 + 4 + 4 + 8;
    std::vector<size_t> fields;
    for (size_t i = 0; i < 4 + 1 + 8; ++i) fields.push_back(counts + 4 * i);
    uint32_t basis_bytes = 0;
    std::memcpy(&basis_bytes, good.data() + counts + 16, sizeof(basis_bytes));
    ASSERT_LT(basis_bytes, good.size());
    const auto field = [&](size_t at) {
      int32_t value = 0;
      std::memcpy(&value, good.data() + at, sizeof(value));
      return value;
    };
    if (field(counts + 12) == 1) fields.push_back(counts + 20 + basis_bytes);  // of the first page
    for (const size_t at : fields) {
      const int32_t old = field(at);
      for (const int32_t value : {-1, INT32_MIN, INT32_MAX, 1 << 30, 2, 16, 48, 96, old - 64,
                                  old - 1, old + 1, old + 64}) {
        if (value == old) continue;
        std::vector<std::byte> bytes = good;
        std::memcpy(bytes.data() + at, &value, sizeof(value));
        EXPECT_TRUE(corruption.refuses(bytes)) << value << " at " << at - counts;
      }
    }
  }
}

// What a flipped bit leaves acceptable must be whole: attention over it reads no byte too many
// (sanitizers watch) and gives numbers.
TEST(KvCacheBasesIo, FlippedBitsAreRefusedOrWhole) {
  const auto backend = make_cpu_backend(1);
  for (const char* spec : kFitted) {
    SCOPED_TRACE(spec);
    Corruption corruption(spec, shapes());
    Random random(5);
    KvCache target(CacheSpec::parse(spec), shapes());
    int refused = 0;
    for (int i = 0; i < 150; ++i) {
      std::vector<std::byte> bytes = corruption.good();
      // Half of them in the fields at the front.
      const size_t range = i % 2 == 0 ? 400 : bytes.size();
      bytes[random.bits() % range] ^= static_cast<std::byte>(1u << random.bits() % 8);
      if (corruption.refuses(bytes)) {
        ++refused;
        continue;
      }
      target.load(bytes);
      for (const bool values : {false, true}) {
        for (const float value : read_rows(target, 0, 1, values)) {
          ASSERT_TRUE(std::isfinite(value));
        }
      }
      std::vector<float> q(64, 1e-3f);
      std::vector<float> out(64);
      const AttendTask task = {ConstMat(q.data(), 1, 64), target.view(0), target.n_tokens() - 1,
                               Mat(out.data(), 1, 64)};
      backend->attend({.n_heads = 2, .n_kv_heads = 2, .key_dim = 32, .value_dim = 32}, {&task, 1});
      run_pass(&target, *backend, &random, 70);
    }
    EXPECT_GT(refused, 20);
    EXPECT_LT(refused, 150);
  }
}

}  // namespace
}  // namespace kve
