#include "engine/key_guard.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/tiny_model.h"

namespace kve {
namespace {

using test::load_tiny;
using test::TemporaryFolder;
using test::TinyModel;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// One head of layer 1 with a bias of 100 in a channel, where weights spread keys by 2.
std::string warning(const char* cache, float norm = 100) {
  const std::vector<KeyBias> biases = {
      {.layer = 1, .head = 3, .largest = 100, .norm = norm, .spread = 2},
      {.layer = 1, .head = 4, .largest = 90, .norm = 95, .spread = 2},
      {.layer = 2, .head = 0, .largest = 3, .norm = 4, .spread = 2}};
  return key_bias_warning(biases, 6, 64, CacheSpec::parse(cache));
}

TEST(KeyGuard, TellsOfStepsThatAreLongerThanKeysSpread) {
  const std::string text = warning("q4_0");
  EXPECT_TRUE(contains(text, "cache q4_0: the keys of 1 of 6 layers")) << text;
  EXPECT_TRUE(contains(text, "layer 1, kv head 3: up to 100 in a channel")) << text;
  // Codes from -100 to 100 in 15 steps of 13.3, or 6.7 spreads.
  EXPECT_TRUE(contains(text, "spread by 2.0; a step of the codes is 6.7 times that")) << text;
  EXPECT_TRUE(contains(text, "use best4")) << text;
  EXPECT_TRUE(contains(warning("int3:group=32"), "use best3"));
  EXPECT_TRUE(contains(warning("sym2:group=row"), "use best2"));
  EXPECT_TRUE(contains(warning("int5:group=32"), "per=channel"));
  EXPECT_TRUE(contains(warning("decoquant4"), "6.7 times"));
  // Rotated, 37.5 in all channels.
  EXPECT_TRUE(contains(warning("hadamard+q4_0"), "2.5 times"));
  EXPECT_TRUE(contains(warning("turbo4"), "2.5 times"));
}

TEST(KeyGuard, LetsPassWhatBearsABias) {
  for (const char* cache :
       {"f16", "q8_0", "best8", "best4", "best2", "kivi2", "k=f16+v=q4_0",
        "int4:group=32,channels=centred", "e4m3", "q4_0+k=f16:layers=1", "q4_0+k=best3:first=2"}) {
    EXPECT_EQ(warning(cache), "") << cache;
  }
  // Another layer's keys.
  EXPECT_NE(warning("q4_0+k=f16:layers=2"), "");
  EXPECT_EQ(key_bias_warning({}, 6, 64, CacheSpec::parse("q4_0")), "");
}

TEST(KeyGuard, MeasuresBiasesAgainstTheWeights) {
  const TemporaryFolder folder;
  const auto model = load_tiny(folder, {.n_kv_heads = 2, .head_dim = 32, .key_bias = -80});
  const GgufFile& file = model->file();
  const ModelWeights weights(GgufFile::open(file.path()), model->spec());
  const std::vector<KeyBias> found = key_biases(model->spec(), weights);
  ASSERT_EQ(found.size(), 2u);  // the other head of both layers has none
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const auto* matrix = reinterpret_cast<const float*>(file.tensor(prefix + "attn_k.weight").data);
    const auto* norm =
        reinterpret_cast<const float*>(file.tensor(prefix + "attn_norm.weight").data);
    double squares = 0;
    for (int c = 32; c < 64; ++c) {
      for (int j = 0; j < 64; ++j) squares += std::pow(matrix[c * 64 + j] * norm[j], 2.0);
    }
    const KeyBias& bias = found[static_cast<size_t>(layer)];
    EXPECT_EQ(bias.layer, layer);
    EXPECT_EQ(bias.head, 1);
    EXPECT_EQ(bias.largest, 80);
    EXPECT_EQ(bias.norm, 80);
    EXPECT_NEAR(bias.spread, std::sqrt(squares / 32), 1e-4);  // float32 rounding
  }
  EXPECT_EQ(model->cache_warnings(CacheSpec::parse("q4_0")).size(), 1u);
  EXPECT_EQ(model->cache_warnings(CacheSpec::parse("best4")).size(), 0u);
}

TEST(KeyGuard, SaysNothingOfModelsWithoutBiases) {
  const TemporaryFolder folder;
  EXPECT_TRUE(load_tiny(folder, {})->cache_warnings(CacheSpec::parse("q4_0")).empty());
  // Small ones, as most that have any.
  EXPECT_TRUE(load_tiny(folder, {.key_bias = 2})->cache_warnings(CacheSpec::parse("q4_0")).empty());
  // Keys that are normalised after their bias was added.
  const auto gemma = load_tiny(folder, {.arch = "gemma3", .key_bias = 80});
  EXPECT_TRUE(gemma->cache_warnings(CacheSpec::parse("q4_0")).empty());
}

}  // namespace
}  // namespace kve
