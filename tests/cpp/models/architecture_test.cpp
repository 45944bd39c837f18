// Every architecture and rope variant against transformers, on tiny models with the same weights
// (tests/oracle/make_tiny_models.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kvengine.h"

namespace kve {
namespace {

std::filesystem::path tiny_folder() { return std::filesystem::path(KVE_TEST_FIXTURES) / "tiny"; }

std::vector<std::string> tiny_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(tiny_folder())) {
    if (entry.path().extension() == ".gguf") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The data of a NumPy file, whose header says how long it is. The dtype is the caller's to know.
template <class T>
std::vector<T> read_npy(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  constexpr size_t kPrefix = 10;
  if (bytes.size() < kPrefix) return {};
  const size_t header = static_cast<unsigned char>(bytes[8]) +
                        256 * static_cast<size_t>(static_cast<unsigned char>(bytes[9]));
  std::vector<T> values((bytes.size() - kPrefix - header) / sizeof(T));
  std::memcpy(values.data(), bytes.data() + kPrefix + header, values.size() * sizeof(T));
  return values;
}

TEST(Architectures, AreAllThere) { EXPECT_EQ(tiny_names().size(), 15u); }

class TinyArchitecture : public ::testing::TestWithParam<std::string> {
 protected:
  const std::filesystem::path base_ = tiny_folder() / GetParam();
  const std::vector<Token> ids_ = read_npy<Token>(base_.string() + ".ids.npy");
  const std::vector<float> expected_ = read_npy<float>(base_.string() + ".logits.npy");

  // The largest difference, as a share of the range of the expected logits.
  double error(bool exact, int n_batch) const {
    LoadOptions load;
    load.threads = 2;
    SessionOptions options;
    options.exact = exact;
    options.cache = CacheSpec::parse("f32");
    options.n_batch = n_batch;
    Session session = Model::load(base_.string() + ".gguf", load)->session(options);
    const auto found = session.forward(ids_, true);
    EXPECT_EQ(found->values.size(), expected_.size());
    double worst = 0;
    for (size_t i = 0; i < std::min(expected_.size(), found->values.size()); ++i) {
      worst = std::max(worst, std::fabs(double{found->values[i]} - expected_[i]));
    }
    const auto [low, high] = std::minmax_element(expected_.begin(), expected_.end());
    return worst / (*high - *low);
  }
};

// Both sides compute in f32, in different orders; leaving out what a case is about moves logits by
// 6 % to 64 % of the range.
TEST_P(TinyArchitecture, EqualsTransformersInOneChunk) { EXPECT_LT(error(true, 256), 2e-5); }
TEST_P(TinyArchitecture, EqualsTransformersTokenByToken) { EXPECT_LT(error(true, 1), 2e-5); }

INSTANTIATE_TEST_SUITE_P(Models, TinyArchitecture, ::testing::ValuesIn(tiny_names()),
                         [](const auto& tested) {
                           std::string name = tested.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace kve
