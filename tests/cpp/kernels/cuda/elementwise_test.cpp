#include "kernels/cuda/elementwise.h"

#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

using test::Random;

class CudaElementwise : public CudaTest {
 protected:
  // The definition of correct.
  std::unique_ptr<Backend> cpu_ = make_cpu_backend(1, "scalar");
};

std::vector<double> as_doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

TEST_P(CudaElementwise, RmsNorm) {
  for (const int64_t n : {1, 31, 64, 576, 1000}) {
    const int64_t rows = 3;
    Random random(static_cast<uint64_t>(n));
    const std::vector<float> x = random.normals(rows * n, 3.0f);
    const std::vector<float> weight = random.normals(n);
    std::vector<float> expected(x.size());
    cpu_->rms_norm(ConstMat(x.data(), rows, n), weight.data(), 1e-5f,
                   Mat(expected.data(), rows, n));
    const auto from = on_device(x);
    const auto weights = on_device(weight);
    DeviceArray<float> to(device(), x.size());
    rms_norm(ConstMat(from.data(), rows, n), weights.data(), 1e-5f, Mat(to.data(), rows, n));
    EXPECT_LT(test::relative_error(to.host(), as_doubles(expected)), 2e-6) << n;
    // In place.
    rms_norm(Mat(from.data(), rows, n), weights.data(), 1e-5f, Mat(from.data(), rows, n));
    EXPECT_TRUE(test::same_bits(from.host(), to.host())) << n;
  }
}

TEST_P(CudaElementwise, Rope) {
  for (const int head_dim : {64, 80, 96, 128, 256}) {
    for (const RopeLayout layout : {RopeLayout::interleaved, RopeLayout::half_split}) {
      const int64_t rows = 3;
      const int64_t cols = 2 * head_dim;
      const int64_t half = head_dim == 128 ? 32 : head_dim / 2;
      Random random(static_cast<uint64_t>(head_dim));
      std::vector<float> x = random.normals(rows * cols);
      const std::vector<float> cos = random.normals(rows * half);
      const std::vector<float> sin = random.normals(rows * half);
      const auto values = on_device(x);
      const auto cosines = on_device(cos);
      const auto sines = on_device(sin);
      rope(Mat(values.data(), rows, cols), head_dim, layout, ConstMat(cosines.data(), rows, half),
           ConstMat(sines.data(), rows, half));
      cpu_->rope(Mat(x.data(), rows, cols), head_dim, layout, ConstMat(cos.data(), rows, half),
                 ConstMat(sin.data(), rows, half));
      EXPECT_LT(test::relative_error(values.host(), as_doubles(x)), 1e-6) << head_dim;
    }
  }
}

TEST_P(CudaElementwise, Gated) {
  for (const Activation activation :
       {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu}) {
    const int64_t rows = 3;
    const int64_t cols = 301;
    Random random(static_cast<uint64_t>(activation));
    std::vector<float> gate = random.normals(rows * cols, 4);
    const std::vector<float> up = random.normals(rows * cols);
    const auto gates = on_device(gate);
    const auto ups = on_device(up);
    gated(activation, Mat(gates.data(), rows, cols), ConstMat(ups.data(), rows, cols));
    cpu_->gated(activation, Mat(gate.data(), rows, cols), ConstMat(up.data(), rows, cols));
    EXPECT_LT(test::relative_error(gates.host(), as_doubles(gate)), 2e-6)
        << static_cast<int>(activation);
  }
}

TEST_P(CudaElementwise, AddAndSoftcapOfViews) {
  const int64_t rows = 5;
  const int64_t cols = 70;
  const int64_t stride = 77;
  Random random(1);
  std::vector<float> x = random.normals(rows * stride, 30);
  const std::vector<float> y = random.normals(rows * cols);
  const auto xs = on_device(x);
  const auto ys = on_device(y);
  add(Mat(xs.data(), rows, cols, stride), ConstMat(ys.data(), rows, cols));
  softcap(30.0f, Mat(xs.data(), rows, cols, stride));
  cpu_->add(Mat(x.data(), rows, cols, stride), ConstMat(y.data(), rows, cols));
  cpu_->softcap(30.0f, Mat(x.data(), rows, cols, stride));
  EXPECT_LT(test::relative_error(xs.host(), as_doubles(x)), 2e-6);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = cols; i < stride; ++i) {
      const auto at = static_cast<size_t>(r * stride + i);
      EXPECT_EQ(xs.host()[at], x[at]) << "the gap between rows was written";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaElementwise, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
