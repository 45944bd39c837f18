// Products of quantized weights, from one token (decode: memory decides) to 512 (prefill:
// arithmetic decides), with the weights as the file has them and repacked.
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "base/memory.h"
#include "kernels_bench.h"

namespace kernels_bench {
namespace {

using kve::Precision;
using kve::Weight;
using kve::WeightType;

// More than caches hold.
constexpr size_t kStreamBytes = size_t{128} << 20;

// One encoded row; blocks of random bytes, of sane size, where a type is only read.
std::vector<std::byte> make_row(WeightType type, int64_t cols) {
  const kve::WeightFormat& format = kve::format(type);
  std::vector<std::byte> row(kve::row_bytes(type, cols));
  if (format.encode != nullptr) {
    format.encode(pseudo_random_values(cols).data(), row.data(), cols);
    return row;
  }
  uint64_t draws = 0;
  std::vector<float> values(static_cast<size_t>(format.block_values));
  for (size_t at = 0; at < row.size(); at += static_cast<size_t>(format.block_bytes)) {
    for (bool sane = false; !sane;) {
      for (int i = 0; i < format.block_bytes; ++i) {
        row[at + static_cast<size_t>(i)] =
            static_cast<std::byte>(128 * (1 + pseudo_random(draws++)));
      }
      format.decode(row.data() + at, values.data(), format.block_values);
      sane = true;
      for (const float value : values) sane = sane && std::abs(value) < 100;  // false for NaN
    }
  }
  return row;
}

// Copies of one matrix, at least `least_bytes` of them, so that going round reads memory.
struct Weights {
  Weights(kve::Backend& device, WeightType type, int64_t rows, int64_t cols, bool repack,
          size_t least_bytes) {
    const std::vector<std::byte> row = make_row(type, cols);
    std::byte* data = in_file.get<std::byte>(row.size() * static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(data + static_cast<size_t>(r) * row.size(), row.data(), row.size());
    }
    const Weight weight = {type, rows, cols, row.size(), data};
    bytes = row.size() * static_cast<size_t>(rows);
    if (repack) bytes = device.repacked_bytes(weight);
    if (bytes == 0) return;
    const size_t stride = (bytes + kve::kCacheLine - 1) / kve::kCacheLine * kve::kCacheLine;
    const size_t n = least_bytes / stride + 1;
    copies = kve::LargeBlock(std::make_shared<kve::MemoryCounter>(), stride * n);
    std::byte* next = copies.data();
    for (size_t i = 0; i < n; ++i, next += stride) {
      Weight copy = weight;
      if (repack) {
        device.repack(weight, next);
        copy.repacked = next;
      } else {
        std::memcpy(next, data, bytes);
        copy.data = next;
      }
      weights.push_back(copy);
    }
  }
  kve::Scratch in_file;
  kve::LargeBlock copies;       // as the engine keeps what it repacks
  size_t bytes = 0;             // of one matrix
  std::vector<Weight> weights;  // empty: this type is not repacked
};

struct Shape {
  int64_t rows;
  int64_t cols;
};
constexpr Shape kShapes[] = {{576, 576},   {1536, 576},  {576, 1536},  {49152, 576},
                             {2048, 2048}, {5632, 2048}, {2048, 5632}, {32000, 2048}};

bool is_float(WeightType type) {
  return type == WeightType::f32 || type == WeightType::f16 || type == WeightType::bf16;
}

void matmul(benchmark::State& state) {
  const auto type = static_cast<WeightType>(state.range(0));
  const Shape shape = kShapes[state.range(1)];
  const int64_t tokens = state.range(2);
  const int64_t threads = state.range(3);
  const auto precision = static_cast<Precision>(state.range(4));
  const bool repack = state.range(5) != 0;
  kve::Backend& device = backend(threads);
  const Weights weights(device, type, shape.rows, shape.cols, repack,
                        tokens <= 8 ? kStreamBytes : 0);
  if (weights.weights.empty()) {
    state.SkipWithError("this type is not repacked");
    return;
  }
  const std::vector<float> x = pseudo_random_values(tokens * shape.cols);
  std::vector<float> y(static_cast<size_t>(tokens * shape.rows));
  size_t next = 0;
  for (auto _ : state) {
    const kve::Product product = {&weights.weights[next], kve::Mat(y.data(), tokens, shape.rows),
                                  nullptr};
    device.matmul(kve::ConstMat(x.data(), tokens, shape.cols), {&product, 1}, precision);
    next = (next + 1) % weights.weights.size();
  }
  state.SetLabel(std::string(kve::format(type).name) + " " + std::to_string(shape.rows) + "x" +
                 std::to_string(shape.cols) + (repack ? " repacked" : ""));
  count_bytes(state, static_cast<double>(weights.bytes), threads);
  const double products = static_cast<double>(shape.rows * shape.cols * tokens);
  count_operations(state, 2 * products, threads, precision != Precision::exact && !is_float(type));
}

void matmul_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"type", "shape", "tokens", "threads", "precision", "repacked"});
  const auto add = [&](WeightType type, int64_t shape, int64_t tokens, int64_t threads,
                       Precision precision, bool repacked) {
    bench->Args({static_cast<int64_t>(type), shape, tokens, threads,
                 static_cast<int64_t>(precision), repacked});
  };
  for (const WeightType type :
       {WeightType::q8_0, WeightType::q4_0, WeightType::q4_1, WeightType::q5_0, WeightType::q5_1,
        WeightType::q4_k, WeightType::q5_k, WeightType::q6_k, WeightType::iq4_nl,
        WeightType::iq4_xs, WeightType::mxfp4, WeightType::f16, WeightType::bf16,
        WeightType::f32}) {
    for (int64_t shape = 0; shape < 8; ++shape) {
      if (kShapes[shape].cols % kve::format(type).block_values != 0) continue;
      const bool logits = kShapes[shape].rows > 30000;
      for (const int64_t threads : thread_counts()) {
        for (const int64_t tokens : {1, 2, 4, 8, 512}) {
          if (logits && tokens == 512) continue;
          for (const bool repacked : {false, true}) {
            // Whatever is repacked is a quantized type; asking at run time skips the others.
            if (repacked && is_float(type)) continue;
            add(type, shape, tokens, threads, Precision::fast, repacked);
            if (tokens == 1 || tokens == 8) {
              add(type, shape, tokens, threads, Precision::fine, repacked);
            }
          }
        }
        if (!logits) add(type, shape, 64, threads, Precision::exact, false);
      }
    }
  }
}

BENCHMARK(matmul)->Apply(matmul_arguments)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kernels_bench
