// What the kernel tests share: every available instruction set, seeded data, float64 references.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "base/memory.h"
#include "kernels/backend.h"

namespace kve::test {

inline std::vector<std::string> available_isas() {
  std::vector<std::string> names = {"scalar"};
  if (cpu_features().avx2) names.push_back("avx2");
  if (cpu_features().avx512) names.push_back("avx512");
  if (cpu_features().avx512_bf16) names.push_back("avx512_bf16");
  if (cpu_features().amx) names.push_back("amx");
  if (cpu_features().neon) names.push_back("neon");
  if (cpu_features().dotprod) names.push_back("dotprod");
  return names;
}

// A small generator, the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(bits() >> 40) * 0x1p-24f;
  }
  // Roughly normal: the sum of 4 uniform numbers, unit variance.
  float normal() {
    float total = 0;
    for (int i = 0; i < 4; ++i) total += uniform(-1, 1);
    return total * 0.8660254f;
  }
  std::vector<float> normals(int64_t n, float size = 1) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = size * normal();
    return values;
  }

 private:
  uint64_t state_;
};

// Largest |a - b| over the largest |b|.
inline double relative_error(const std::vector<float>& a, const std::vector<double>& b) {
  double worst = 0;
  double size = 1e-30;
  for (size_t i = 0; i < b.size(); ++i) {
    const double error = std::abs(static_cast<double>(a[i]) - b[i]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    size = std::max(size, std::abs(b[i]));
  }
  return worst / size;
}

// sqrt(sum (a - b)^2 / sum b^2).
inline double rms_error(const std::vector<float>& a, const std::vector<double>& b) {
  double error = 0;
  double size = 1e-60;
  for (size_t i = 0; i < b.size(); ++i) {
    error += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += b[i] * b[i];
  }
  return std::sqrt(error / size);
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A weight of any type with its decoded values.
struct TestWeight {
  std::vector<std::byte> bytes;
  std::vector<float> values;  // [rows, cols]
  Weight weight;
  Scratch repacked;
};

// Encoded from normal values where the type has an encoder, else made of random blocks whose scales
// are kept sane. `guard` bytes before the data make the rows start at odd addresses.
inline TestWeight make_weight(WeightType type, int64_t rows, int64_t cols, uint64_t seed,
                              size_t guard = 0) {
  const WeightFormat& fmt = format(type);
  TestWeight made;
  const size_t row_size = row_bytes(type, cols);
  made.bytes.resize(guard + row_size * static_cast<size_t>(rows));
  made.values.resize(static_cast<size_t>(rows * cols));
  Random random(seed);
  for (int64_t r = 0; r < rows; ++r) {
    std::byte* row = made.bytes.data() + guard + static_cast<size_t>(r) * row_size;
    float* values = made.values.data() + r * cols;
    if (fmt.encode != nullptr) {
      const std::vector<float> source = random.normals(cols, 0.1f);
      fmt.encode(source.data(), row, cols);
      fmt.decode(row, values, cols);
      continue;
    }
    // Random blocks, drawn again while a value is not finite or beyond 4.
    for (int64_t b = 0; b < cols / fmt.block_values; ++b) {
      std::byte* block = row + b * fmt.block_bytes;
      float* decoded = values + b * fmt.block_values;
      for (int attempt = 0;; ++attempt) {
        for (int i = 0; i < fmt.block_bytes; ++i) {
          block[i] = static_cast<std::byte>(attempt < 100000 ? random.bits() >> 32 : 0);
        }
        fmt.decode(block, decoded, fmt.block_values);
        const bool sane = std::all_of(decoded, decoded + fmt.block_values, [](float v) {
          return std::isfinite(v) && std::abs(v) < 4.0f;
        });
        if (sane) break;
      }
    }
  }
  made.weight = {type, rows, cols, row_size, made.bytes.data() + guard};
  return made;
}

// Floats, and every coding with every number of bits it may have and a few ways of scaling.
inline std::vector<CodecSpec> test_codecs() {
  std::vector<CodecSpec> out = {{CodecId::f32}, {CodecId::f16}, {CodecId::bf16}};
  const auto add = [&](Coding coding, int bits, int group, auto... rest) {
    CodecSpec spec = {CodecId::coded, {coding, static_cast<uint8_t>(bits)}, rest...};
    spec.group = group;
    if (coding == Coding::lloyd) spec.coding.fit = Fit::energy;
    if (bits == 3) spec.coding.scale = ScaleFormat::log8;
    out.push_back(spec);
  };
  for (int coding = 0; coding <= static_cast<int>(Coding::e5m2); ++coding) {
    for (int bits = 1; bits <= 8; ++bits) {
      const auto kind = static_cast<Coding>(coding);
      if (!is_valid_bits(kind, bits)) continue;
      add(kind, bits, is_ggml(kind) || bits % 2 == 0 ? 32 : kWholeHead);
      if (!is_ggml(kind)) add(kind, bits, bits % 2 == 0 ? 64 : 16, Per::channel);
    }
  }
  for (const Channels channels : {Channels::centred, Channels::scaled}) {
    add(Coding::asym, 4, 16, Per::token, channels);
    add(Coding::asym, 2, kWholeHead, Per::token, channels);
  }
  return out;
}

// Gives the weight a copy in the backend's own layout, where it has one.
inline void repack(Backend& backend, TestWeight* w) {
  const size_t bytes = backend.repacked_bytes(w->weight);
  if (bytes == 0) return;
  std::byte* memory = w->repacked.get<std::byte>(bytes);
  backend.repack(w->weight, memory);
  w->weight.repacked = memory;
}

inline std::vector<double> reference_matmul(const std::vector<float>& x, int64_t n,
                                            const TestWeight& w, const float* bias = nullptr) {
  std::vector<double> y(static_cast<size_t>(n * w.weight.rows));
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t r = 0; r < w.weight.rows; ++r) {
      double total = bias == nullptr ? 0.0 : static_cast<double>(bias[r]);
      for (int64_t k = 0; k < w.weight.cols; ++k) {
        total += static_cast<double>(x[static_cast<size_t>(t * w.weight.cols + k)]) *
                 static_cast<double>(w.values[static_cast<size_t>(r * w.weight.cols + k)]);
      }
      y[static_cast<size_t>(t * w.weight.rows + r)] = total;
    }
  }
  return y;
}

}  // namespace kve::test
