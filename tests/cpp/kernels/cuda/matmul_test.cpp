#include "kernels/cuda/matmul.h"

#include <cmath>
#include <cstring>

#include "base/half.h"
#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

using test::Random;

constexpr WeightType kCoded[] = {WeightType::q4_0, WeightType::q4_1, WeightType::q5_0,
                                 WeightType::q5_1, WeightType::q8_0, WeightType::q4_k,
                                 WeightType::q5_k, WeightType::q6_k};

// A weight in host memory, with the values that its type defines.
struct HostWeight {
  std::vector<std::byte> bytes;
  std::vector<float> values;
  Weight weight;
};

HostWeight make_weight(WeightType type, int64_t rows, int64_t cols, Random* random) {
  HostWeight made;
  const size_t bytes = row_bytes(type, cols);
  made.bytes.resize(static_cast<size_t>(rows) * bytes);
  made.values = random->normals(rows * cols, 0.3f);
  for (int64_t r = 0; r < rows; ++r) {
    std::byte* row = made.bytes.data() + static_cast<size_t>(r) * bytes;
    float* values = made.values.data() + r * cols;
    format(type).encode(values, row, cols);
    format(type).decode(row, values, cols);
  }
  made.weight = {type, rows, cols, bytes, made.bytes.data(), nullptr};
  return made;
}

class CudaMatmul : public CudaTest {
 protected:
  // x [n, cols] times the weight: y of the device.
  std::vector<float> multiply(const HostWeight& host, const std::vector<float>& x, int64_t n,
                              Precision precision, const std::vector<float>& bias,
                              std::vector<double>* expected) {
    const int64_t rows = host.weight.rows;
    const int64_t cols = host.weight.cols;
    std::vector<std::byte> packed(packed_bytes(host.weight));
    pack_weight(host.weight, packed.data());
    const auto device_packed = on_device(packed);
    const auto device_bias = on_device(bias);
    const auto device_x = on_device(x);
    DeviceArray<float> y(device(), static_cast<size_t>(n * rows));
    const DeviceWeight weight{host.weight.type, rows, cols, device_packed.data()};
    const ConstMat inputs(device_x.data(), n, cols);
    std::vector<double> rounded(x.begin(), x.end());
    if (weight.is_float()) {
      matmul(inputs, weight, device_bias.data(), Mat(y.data(), n, rows));
    } else {
      DeviceArray<std::byte> memory(device(), coded_inputs_bytes(n, cols));
      const CodedInputs coded = code_inputs(inputs, precision, memory.data());
      matmul(coded, weight, device_bias.data(), Mat(y.data(), n, rows));
      rounded = values_of(coded);
    }
    expected->clear();
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t r = 0; r < rows; ++r) {
        double sum = bias.empty() ? 0.0 : static_cast<double>(bias[static_cast<size_t>(r)]);
        for (int64_t c = 0; c < cols; ++c) {
          sum += rounded[static_cast<size_t>(t * cols + c)] *
                 static_cast<double>(host.values[static_cast<size_t>(r * cols + c)]);
        }
        expected->push_back(sum);
      }
    }
    return y.host();
  }

  // The numbers that the device has rounded inputs to.
  std::vector<double> values_of(const CodedInputs& coded) {
    const auto n = static_cast<size_t>(coded.rows * coded.cols);
    std::vector<int8_t> codes(n);
    std::vector<int8_t> remainders(n, 0);
    std::vector<float> scales(n / 32);
    device().download(codes.data(), coded.codes, n);
    const bool two = coded.remainders != nullptr;
    if (two) device().download(remainders.data(), coded.remainders, n);
    device().download(scales.data(), coded.scales, n / 32 * sizeof(float));
    std::vector<double> values(n);
    for (size_t i = 0; i < n; ++i) {
      values[i] =
          static_cast<double>(scales[i / 32]) * ((two ? 254 : 1) * codes[i] + remainders[i]);
    }
    return values;
  }
};

TEST_P(CudaMatmul, CodedWeights) {
  for (const WeightType type : kCoded) {
    for (const int64_t n : {1, 3, 8, 9}) {
      for (const Precision precision : {Precision::fast, Precision::fine}) {
        const int64_t rows = 21;  // of no whole block
        const int64_t cols = format(type).block_values == 256 ? 256 * (n < 9 ? 5 : 1) : 32 * 3;
        Random random(static_cast<uint64_t>(n) + static_cast<uint64_t>(type) * 100);
        const HostWeight weight = make_weight(type, rows, cols, &random);
        const std::vector<float> x = random.normals(n * cols);
        const std::vector<float> bias = random.normals(rows);
        std::vector<double> expected;
        const std::vector<float> y = multiply(weight, x, n, precision, bias, &expected);
        // Sums of products of codes are exact; what is left is binary32 arithmetic on groups.
        EXPECT_LT(test::relative_error(y, expected), 2e-6)
            << format(type).name << ", " << n << " rows";
      }
    }
  }
}

TEST_P(CudaMatmul, SeveralTiles) {
  for (const WeightType type : {WeightType::q4_0, WeightType::q6_k}) {
    Random random(11);
    const HostWeight weight = make_weight(type, 70, 256, &random);
    const std::vector<float> x = random.normals(70 * 256);
    std::vector<double> expected;
    const std::vector<float> y = multiply(weight, x, 70, Precision::fast, {}, &expected);
    EXPECT_LT(test::relative_error(y, expected), 2e-6) << format(type).name;
  }
}

TEST_P(CudaMatmul, InputsAreRoundedAsTheirPrecisionSays) {
  const int64_t cols = 320;
  Random random(7);
  std::vector<float> x = random.normals(3 * cols);
  for (size_t i = 64; i < 96; ++i) x[i] = 0;
  x[40] = 100;  // of a group whose other values are small
  const auto device_x = on_device(x);
  DeviceArray<std::byte> memory(device(), coded_inputs_bytes(3, cols));
  for (const Precision precision : {Precision::fast, Precision::fine}) {
    const CodedInputs coded =
        code_inputs(ConstMat(device_x.data(), 3, cols), precision, memory.data());
    const std::vector<double> values = values_of(coded);
    std::vector<float> sums(x.size() / 32);
    device().download(sums.data(), coded.sums, sums.size() * sizeof(float));
    for (size_t g = 0; g < x.size() / 32; ++g) {
      double top = 0;
      double sum = 0;
      for (size_t i = 32 * g; i < 32 * g + 32; ++i) {
        top = std::max(top, std::abs(static_cast<double>(x[i])));
        sum += values[i];
      }
      // Half a unit, and what binary32 rounds.
      const double unit = top / 127 / (precision == Precision::fine ? 254 : 1);
      for (size_t i = 32 * g; i < 32 * g + 32; ++i) {
        EXPECT_NEAR(values[i], static_cast<double>(x[i]), unit * 0.51 + top * 1e-6) << i;
      }
      EXPECT_NEAR(sums[g], sum, 1e-4 * (top + 1));
    }
  }
}

TEST_P(CudaMatmul, FloatWeights) {
  for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16}) {
    for (const int64_t n : {1, 19}) {
      Random random(static_cast<uint64_t>(n));
      const HostWeight weight = make_weight(type, 9, 77, &random);
      const std::vector<float> x = random.normals(n * 77);
      std::vector<double> expected;
      const std::vector<float> y = multiply(weight, x, n, Precision::exact, {}, &expected);
      EXPECT_LT(test::relative_error(y, expected), 2e-6) << format(type).name;
    }
  }
}

// A row of a product gets the same bits in every call with at most kFewRows rows (few_rows.h).
TEST_P(CudaMatmul, RowsDoNotDependOnOthers) {
  Random random(3);
  const int64_t cols = 512;
  const HostWeight weight = make_weight(WeightType::q4_k, 8, cols, &random);
  const std::vector<float> x = random.normals(8 * cols);
  std::vector<double> expected;
  const std::vector<float> together = multiply(weight, x, 8, Precision::fine, {}, &expected);
  for (int64_t t = 0; t < 8; ++t) {
    const std::vector<float> alone(x.begin() + t * cols, x.begin() + (t + 1) * cols);
    const std::vector<float> row(together.begin() + t * 8, together.begin() + (t + 1) * 8);
    EXPECT_TRUE(test::same_bits(multiply(weight, alone, 1, Precision::fine, {}, &expected), row));
  }
}

TEST_P(CudaMatmul, NanReachesTheResult) {
  Random random(4);
  const HostWeight weight = make_weight(WeightType::q8_0, 4, 64, &random);
  for (const int64_t n : {1, 10}) {
    std::vector<float> x = random.normals(n * 64);
    x[5] = NAN;
    std::vector<double> expected;
    EXPECT_TRUE(std::isnan(multiply(weight, x, n, Precision::fast, {}, &expected)[0]));
  }
}

TEST_P(CudaMatmul, OtherTypesBecomeBinary16) {
  const test::TestWeight weight = test::make_weight(WeightType::iq4_nl, 2, 64, 8);
  ASSERT_EQ(packed_type(weight.weight.type), WeightType::f16);
  std::vector<std::byte> packed(packed_bytes(weight.weight));
  ASSERT_EQ(packed.size(), 2 * 64 * sizeof(uint16_t));
  pack_weight(weight.weight, packed.data());
  for (size_t i = 0; i < weight.values.size(); ++i) {
    uint16_t half = 0;
    std::memcpy(&half, packed.data() + 2 * i, sizeof(half));
    EXPECT_EQ(half, float_to_half(weight.values[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaMatmul, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
