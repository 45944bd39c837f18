// Rows that are coded in a basis and with components of several sizes, beside the CPU.
#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "kernels/cuda/basis_testing.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

using test::Random;

class CudaSeal : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped()) gpu_ = std::make_unique<CudaBackend>(make_cpu_backend(2));
  }

  // Bytes of a page that each of the backends has coded, in two parts.
  struct Pages {
    std::vector<std::byte> expected;
    std::vector<std::byte> found;
  };
  Pages seal(SealJob job, const std::vector<float>& rows) {
    std::vector<uint16_t> halves;
    for (const float value : rows) halves.push_back(float_to_half(value));
    const size_t bytes = page_bytes(job.format);
    Scratch memory(gpu_->memory());
    auto* there = memory.get<std::byte>(bytes);
    Pages pages;
    pages.expected.resize(bytes);
    const int unit = rows_per_unit(job.format);
    const int part = 24 / unit * unit;
    for (Backend* backend : {cpu_.get(), static_cast<Backend*>(gpu_.get())}) {
      job.page = backend == cpu_.get() ? pages.expected.data() : there;
      backend->memory().zero(job.page, bytes);
      const int32_t position = job.position;
      for (const auto& [first, end] : {std::pair(0, part), std::pair(part, kPageTokens)}) {
        if (first == end) continue;
        SealJob some = job;
        some.f16 = halves.data() + first * job.stride;
        some.first_row = first;
        some.n_rows = end - first;
        some.position = position + first;
        EXPECT_EQ(backend->seal({&some, 1}), -1);
      }
    }
    EXPECT_FALSE(gpu_->was_on_host());
    gpu_->memory().fetch(there, bytes);
    pages.found.assign(there, there + bytes);
    return pages;
  }

  static std::vector<float> decoded(const PageFormat& format, const std::vector<std::byte>& page) {
    std::vector<float> out(static_cast<size_t>(kPageTokens * format.width));
    decode_rows(format, page.data(), 0, kPageTokens, 0, format.width, out.data(), format.width);
    return out;
  }

  // Sums are rounded in another order, so that a code that is between two may be either.
  void check(const SealJob& job, const std::string& what) {
    Random random(3);
    const std::vector<float> rows = random.normals(int64_t{kPageTokens} * job.stride);
    const Pages pages = seal(job, rows);
    const std::vector<float> expected = decoded(job.format, pages.expected);
    const std::vector<float> found = decoded(job.format, pages.found);
    double most = 0;
    double sum = 0;
    int64_t different = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      most = std::max(most, std::abs(double{expected[i]}));
      const double error = double{found[i]} - double{expected[i]};
      sum += error * error;
      different += std::abs(error) > 1e-6 * most;
    }
    EXPECT_LT(std::sqrt(sum / static_cast<double>(expected.size())), 2e-3 * most) << what;
    EXPECT_LT(different, std::ssize(expected) / 100) << what;
  }

  std::unique_ptr<Backend> cpu_ = make_cpu_backend(2);
  std::unique_ptr<CudaBackend> gpu_;
};

CodecSpec codec_of(Per per, Coding coding, int bits, int group) {
  CodecSpec codec{.id = CodecId::coded, .per = per, .group = group};
  codec.coding = {coding, static_cast<uint8_t>(bits),
                  coding == Coding::asym ? Fit::search : Fit::energy, ScaleFormat::log8};
  return codec;
}

TEST_P(CudaSeal, ComponentsOfSeveralSizesHaveTheBitsOfTheCpu) {
  const std::vector<uint8_t> strips = {8, 7, 6, 5, 5, 4, 3, 2, 2, 1, 1, 0, 0, 0, 0, 0};
  for (const int group : {32, 64}) {
    SealJob job;
    job.format = page_format(codec_of(Per::channel, Coding::asym, 4, group), 64, false);
    job.format.coded.strip_bits = strips.data();
    job.stride = job.width = 64;
    Random random(2);
    const Pages pages = seal(job, random.normals(kPageTokens * 64));
    EXPECT_EQ(pages.found, pages.expected) << group;
  }
}

TEST_P(CudaSeal, RowsInABasis) {
  Random random(4);
  for (const bool int8 : {false, true}) {
    for (const bool interleaved : {false, true}) {
      OwnBasis basis({.int8 = int8}, &random);
      basis.anchor(24, interleaved);
      basis.mix_bits({8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 0});
      SealJob job{.basis = &basis.view, .stride = 64, .width = 64, .position = 4 + 5 * 64};
      job.format = page_format(codec_of(Per::channel, Coding::asym, 4, 64), 64, false);
      job.format.coded.strip_bits = basis.view.strip_bits;
      check(job, "keys");
      std::vector<int32_t> positions;
      for (int r = 0; r < kPageTokens; ++r) positions.push_back(100 + 3 * r);
      job.positions = positions.data();
      job.page_offset = 4;
      check(job, "keys between which others are gone");
    }
  }
  for (const int width : {64, 128}) {  // of one head, and of two that share a page
    const OwnBasis basis({.dim = 64, .block = 32, .block_width = 32}, &random);
    SealJob job{.basis = &basis.view, .stride = width, .width = width};
    job.format = page_format(codec_of(Per::token, Coding::lloyd, 4, 32), width, true);
    check(job, "values");
    job.format = page_format({CodecId::f16}, width, true);
    check(job, "values in f16");
  }
  const OwnBasis narrow({.block_width = 48}, &random);
  SealJob job{.basis = &narrow.view, .stride = 64, .width = 64};
  job.format = page_format(codec_of(Per::token, Coding::asym, 8, 16), 48, true);
  check(job, "fewer coefficients than values");
}

TEST_P(CudaSeal, NamesRowsInABasisThatAreNotFinite) {
  Random random(5);
  const OwnBasis basis({}, &random);
  std::vector<float> rows = random.normals(kPageTokens * 64);
  rows[700] = INFINITY;
  SealJob job{
      .basis = &basis.view, .f32 = rows.data(), .stride = 64, .n_rows = kPageTokens, .width = 64};
  job.format = page_format(codec_of(Per::channel, Coding::asym, 4, 64), 64, false);
  Scratch memory(gpu_->memory());
  job.page = memory.get<std::byte>(page_bytes(job.format));
  EXPECT_EQ(gpu_->seal({&job, 1}), 0);
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaSeal, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
