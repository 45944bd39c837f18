#include "kernels/machine_limits.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "kernel_testing.h"
#include "kernels/cpu/dispatch.h"

namespace kve {
namespace {

// Of ones, every multiply-add adds one: a loop that was optimised away, or that counts more than it
// does, gives another total.
TEST(MachineLimits, LoopsDoTheWorkTheyCount) {
  constexpr int64_t kRounds = 1000;  // sums of floats stay exact
  const std::vector<int8_t> codes(kPeakValues, 1);
  const std::vector<float> values(kPeakValues, 1.0f);
  for (const std::string& isa : test::available_isas()) {
    SCOPED_TRACE(isa);
    const Kernels& kernels = find_kernels(isa);
    std::vector<int32_t> whole(kPeakSums, -1);
    const int64_t products = kernels.peak_int8(codes.data(), kRounds, whole.data());
    EXPECT_GE(products, kRounds);
    EXPECT_EQ(std::accumulate(whole.begin(), whole.end(), int64_t{0}), products);
    std::vector<float> real(kPeakSums, -1.0f);
    const int64_t floats = kernels.peak_f32(values.data(), kRounds, real.data());
    EXPECT_GE(floats, kRounds);
    EXPECT_EQ(std::accumulate(real.begin(), real.end(), 0.0), static_cast<double>(floats));
    if (kernels.peak_bf16 != nullptr) {
      const std::vector<uint16_t> halves(kPeakValues, 0x3f80);
      const int64_t pairs = kernels.peak_bf16(halves.data(), kRounds, real.data());
      EXPECT_GE(pairs, kRounds);
      EXPECT_EQ(std::accumulate(real.begin(), real.end(), 0.0), static_cast<double>(pairs));
    }
    const std::vector<float> stream(256 * 5, 1.0f);
    kernels.peak_read(stream.data(), static_cast<int64_t>(stream.size()), real.data());
    EXPECT_EQ(std::accumulate(real.begin(), real.end(), 0.0), static_cast<double>(stream.size()));
  }
}

// Bounds that any machine of this century keeps and a unit or factor of a thousand would not.
TEST(MachineLimits, ArePlausible) {
  const MachineLimits limits = machine_limits(2);
  EXPECT_GT(limits.read_bytes, 1e7);
  EXPECT_LT(limits.read_bytes, 1e13);
  EXPECT_GT(limits.int8_ops, 1e7);
  EXPECT_LT(limits.int8_ops, 1e14);
  EXPECT_GT(limits.f32_ops, 1e7);
  EXPECT_LT(limits.f32_ops, 1e14);
  EXPECT_GE(limits.bf16_ops, 0);
  EXPECT_LT(limits.bf16_ops, 1e14);
}

TEST(MachineLimits, RefuseWhatCannotBe) {
  EXPECT_THROW(machine_limits(-1), ConfigError);
  if (std::getenv("KVENGINE_ISA") != nullptr) GTEST_SKIP() << "KVENGINE_ISA overrides the name";
  EXPECT_THROW(machine_limits(1, "abacus"), ConfigError);
}

}  // namespace
}  // namespace kve
