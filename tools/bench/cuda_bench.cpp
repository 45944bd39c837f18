// Times the CUDA kernels on one GPU, at the shapes of Llama-3-8B (32 query heads, 8 kv heads of
// 128, width 4096, ffn 14336, vocabulary 128256), in one run of a few minutes:
//   cuda_bench [--tokens N]
// Each figure is the median of seven timings of several launches that go through different copies
// of the data, so that they do not find it in the L2 cache. `part` is of the rate at which the
// device copies memory, measured first. torch's attention is timed by cuda_sdpa.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "formats/cache_codecs.h"
#include "formats/weight_formats.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/matmul.h"

namespace kve::cuda {
namespace {

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kRowWidth = kKvHeads * kHeadDim;
constexpr size_t kMoreThanCache = size_t{256} << 20;  // bytes that launches go through

// A small generator of numbers that are roughly normal.
class Noise {
 public:
  float next() {
    float total = 0;
    for (int i = 0; i < 4; ++i) {
      state_ ^= state_ << 13;
      state_ ^= state_ >> 7;
      state_ ^= state_ << 17;
      total += static_cast<float>(state_ >> 40) * 0x1p-24f - 0.5f;
    }
    return total * 1.7320508f;
  }
  std::vector<float> values(size_t n) {
    std::vector<float> made(n);
    for (float& value : made) value = next();
    return made;
  }

 private:
  uint64_t state_ = 88172645463325252u;
};

// Median of seven, in ms for one call of `body`, which is called with 0, 1, ...
double time_ms(int calls, const std::function<void(int)>& body) {
  DeviceTimer timer;
  std::vector<double> times;
  for (int i = 0; i < calls; ++i) body(i);
  for (int n = 0; n < 7; ++n) {
    timer.start();
    for (int i = 0; i < calls; ++i) body(i);
    times.push_back(timer.stop_ms() / calls);
  }
  std::sort(times.begin(), times.end());
  return times[3];
}

double gb_per_s(double bytes, double ms) { return bytes / ms * 1e-6; }

double copy_rate(Device& device, size_t bytes) {
  DeviceArray<std::byte> from(device, bytes);
  DeviceArray<std::byte> to(device, bytes);
  std::vector<float> noise = Noise().values(1 << 16);
  for (size_t at = 0; at + noise.size() * 4 <= bytes; at += noise.size() * 4) {
    device.upload(from.data() + at, noise.data(), noise.size() * 4);
  }
  const double ms = time_ms(4, [&](int) { device.copy(to.data(), from.data(), bytes); });
  return gb_per_s(2.0 * static_cast<double>(bytes), ms);
}

CodecSpec coded(Coding coding, int bits, Per per, int group) {
  CodecSpec codec{.id = CodecId::coded, .per = per, .group = group};
  codec.coding.coding = coding;
  codec.coding.bits = static_cast<uint8_t>(bits);
  if (coding == Coding::lloyd) codec.coding.fit = Fit::energy;
  return codec;
}

// A dense basis: keys have one of int8 and anchors, values one of binary16, as the recommended
// caches do. The numbers do not matter.
class Lift {
 public:
  Lift(Device& device, bool values, size_t n_pages, Noise* noise)
      : values_(values),
        lift_(device, halves(noise)),
        lift8_(device, std::vector<int8_t>(kHeadDim * kHeadDim, 7)),
        scale_(device, std::vector<float>(kHeadDim, 0.001f)),
        angles_(device, noise->values(values ? 0 : n_pages * kHeadDim)) {}

  SideBasis basis() const {
    SideBasis basis{.block = kHeadDim, .block_width = kHeadDim};
    if (values_) {
      basis.lift = lift_.data();
      return basis;
    }
    basis.lift8 = lift8_.data();
    basis.lift8_scale = scale_.data();
    basis.query_factor = 1024;
    basis.score_factor = 128.0f / 1024;
    basis.angles = angles_.data();
    basis.n_pairs = kHeadDim / 2;
    return basis;
  }

 private:
  static std::vector<uint16_t> halves(Noise* noise) {
    std::vector<uint16_t> made;
    for (const float value : noise->values(kHeadDim * kHeadDim)) {
      made.push_back(float_to_half(value / 11));
    }
    return made;
  }

  bool values_;
  DeviceArray<uint16_t> lift_;
  DeviceArray<int8_t> lift8_;
  DeviceArray<float> scale_;
  DeviceArray<float> angles_;
};

// Copies of one side of a cache of `tokens` rows: a few pages of noise, over and over.
class Side {
 public:
  Side(Device& device, const CodecSpec& codec, bool in_basis, bool values, int tokens, int copies,
       Noise* noise)
      : format_(page_format(codec, kRowWidth, values)),
        page_bytes_((page_bytes(format_) + 255) / 256 * 256),
        n_pages_(static_cast<size_t>(tokens / kPageTokens)),
        in_basis_(in_basis),
        lift_(device, values, n_pages_, noise),
        memory_(device, page_bytes_ * n_pages_ * static_cast<size_t>(copies)),
        places_(device, places(copies)),
        kind_(device, std::vector<PageKind>{
                          {side_format(format_), in_basis ? lift_.basis() : SideBasis{}}}) {
    constexpr size_t kDistinct = 16;
    std::vector<std::byte> pages(page_bytes_ * kDistinct);
    std::vector<std::byte> scratch(encode_scratch(format_) + 64);
    for (size_t p = 0; p < kDistinct; ++p) {
      const std::vector<float> rows = noise->values(kPageTokens * kRowWidth);
      encode_rows(format_, rows.data(), kRowWidth, pages.data() + p * page_bytes_, 0, kPageTokens,
                  scratch.data());
    }
    for (size_t p = 0; p < n_pages_ * static_cast<size_t>(copies); p += kDistinct) {
      const size_t n = std::min(kDistinct, n_pages_ * static_cast<size_t>(copies) - p);
      device.upload(memory_.data() + p * page_bytes_, pages.data(), n * page_bytes_);
    }
  }

  SideRows of_head(int copy, int head) const {
    return {.first_channel = head * kHeadDim,
            .n_channels = kHeadDim,
            .kinds = kind_.data(),
            .n_tiers = 1,
            .in_basis = in_basis_,
            .pages = places_.data() + static_cast<size_t>(copy) * n_pages_,
            .page_rows = static_cast<int32_t>(n_pages_) * kPageTokens,
            .row_stride = kRowWidth};
  }
  double bytes() const { return static_cast<double>(page_bytes(format_) * n_pages_); }

 private:
  std::vector<PagePlace> places(int copies) const {
    std::vector<PagePlace> made;
    for (size_t p = 0; p < n_pages_ * static_cast<size_t>(copies); ++p) {
      made.push_back({memory_.data() + p * page_bytes_, 0, static_cast<int32_t>(p % n_pages_)});
    }
    return made;
  }

  PageFormat format_;
  size_t page_bytes_;
  size_t n_pages_;
  bool in_basis_;
  Lift lift_;
  DeviceArray<std::byte> memory_;
  DeviceArray<PagePlace> places_;
  DeviceArray<PageKind> kind_;
};

struct NamedCache {
  const char* name;
  CodecSpec keys;
  CodecSpec values;
  bool in_basis = false;
};

// What is recommended at so many bits.
NamedCache best(const char* name, int bits) {
  NamedCache made{name, coded(Coding::asym, bits, Per::channel, 64),
                  coded(Coding::lloyd, bits, Per::token, kHeadDim), true};
  made.keys.coding.scale = made.values.coding.scale = ScaleFormat::log8;
  return made;
}

std::vector<NamedCache> caches() {
  std::vector<NamedCache> made = {{"f16", {.id = CodecId::f16}, {.id = CodecId::f16}, false}};
  for (const int bits : {8, 4, 3, 2}) {
    static const char* const kNames[] = {"asym2", "asym3", "asym4", "", "", "", "asym8"};
    made.push_back({kNames[bits - 2], coded(Coding::asym, bits, Per::channel, 64),
                    coded(Coding::asym, bits, Per::token, 32), false});
  }
  made.push_back({"asym4, keys per token", coded(Coding::asym, 4, Per::token, 32),
                  coded(Coding::asym, 4, Per::token, 32), false});
  made.push_back(best("best4", 4));
  made.push_back(best("best3", 3));
  made.push_back(best("best2", 2));
  made.push_back({"lloyd4", coded(Coding::lloyd, 4, Per::token, 128),
                  coded(Coding::lloyd, 4, Per::token, 128), false});
  made.push_back({"q8_0", coded(Coding::q8_0, 8, Per::token, 32),
                  coded(Coding::q8_0, 8, Per::token, 32), false});
  return made;
}

void bench_attend(Device& device, const NamedCache& cache, int tokens, int n_queries,
                  double copy_gb_per_s) {
  Noise noise;
  const double once = static_cast<double>(tokens) * kRowWidth * 2;  // of f16 keys or values
  const int copies = std::clamp(static_cast<int>(kMoreThanCache / once * 2) + 1, 2, 16);
  const Side keys(device, cache.keys, cache.in_basis, false, tokens, copies, &noise);
  const Side values(device, cache.values, cache.in_basis, true, tokens, copies, &noise);
  std::vector<HeadRows> heads;
  for (int c = 0; c < copies; ++c) {
    for (int h = 0; h < kKvHeads; ++h) {
      heads.push_back({.k = keys.of_head(c, h),
                       .v = values.of_head(c, h),
                       .n_rows = tokens,
                       .first_row = tokens - n_queries});
    }
  }
  const DeviceArray<HeadRows> device_heads(device, heads);
  const AttendParams params{.n_heads = kHeads,
                            .n_kv_heads = kKvHeads,
                            .key_dim = kHeadDim,
                            .value_dim = kHeadDim,
                            .scale = 1 / std::sqrt(128.0f)};
  const int64_t width = kHeads * kHeadDim;
  const std::vector<float> q = noise.values(static_cast<size_t>(n_queries * width));
  const DeviceArray<float> device_q(device, q);
  const DeviceArray<float> out(device, q.size());
  const DeviceArray<std::byte> scratch(device, attend_scratch(params, n_queries, tokens));
  const double ms = time_ms(2 * copies, [&](int i) {
    attend(params,
           {.q = ConstMat(device_q.data(), n_queries, width),
            .heads = device_heads.data() + i % copies * kKvHeads,
            .most_rows = tokens,
            .needs = {cache.in_basis, false, kHeadDim, kHeadDim},
            .out = Mat(out.data(), n_queries, width)},
           scratch.data());
  });
  const double bytes = keys.bytes() + values.bytes();
  const double seen = static_cast<double>(tokens) - n_queries / 2.0;
  const double flop = 4.0 * n_queries * static_cast<double>(width) * seen;
  std::printf("attend %-22s %7d tokens %5d queries: %9.4f ms %7.0f GB/s %5.1f %% %8.1f TFLOP/s\n",
              cache.name, tokens, n_queries, ms, gb_per_s(bytes, ms),
              100 * gb_per_s(bytes, ms) / copy_gb_per_s, flop / ms * 1e-9);
  std::fflush(stdout);
}

void bench_matmul(Device& device, WeightType type, int64_t rows, int64_t cols, int64_t n,
                  double copy_gb_per_s) {
  Noise noise;
  // One row of noise, over and over: the values do not matter, the bytes do.
  std::vector<std::byte> row(row_bytes(type, cols));
  const std::vector<float> values = noise.values(static_cast<size_t>(cols));
  format(type).encode(values.data(), row.data(), cols);
  const Weight weight{type, 1, cols, row.size(), row.data(), nullptr};
  std::vector<std::byte> packed(packed_bytes(weight));
  pack_weight(weight, packed.data());
  const size_t bytes = packed.size() * static_cast<size_t>(rows);
  const int copies = std::clamp(static_cast<int>(kMoreThanCache / bytes) + 1, 1, 32);
  std::vector<std::byte> block;
  const size_t block_rows = 64;
  for (size_t r = 0; r < block_rows; ++r) block.insert(block.end(), packed.begin(), packed.end());
  DeviceArray<std::byte> memory(device, bytes * static_cast<size_t>(copies));
  for (size_t at = 0; at < memory.size(); at += block.size()) {
    device.upload(memory.data() + at, block.data(), std::min(block.size(), memory.size() - at));
  }
  const std::vector<float> x = noise.values(static_cast<size_t>(n * cols));
  const DeviceArray<float> device_x(device, x);
  const DeviceArray<float> y(device, static_cast<size_t>(n * rows));
  const DeviceArray<std::byte> coded_memory(device, coded_inputs_bytes(n, cols));
  for (const Precision precision : {Precision::fast, Precision::fine}) {
    const double ms = time_ms(2 * copies, [&](int i) {
      const CodedInputs inputs =
          code_inputs(ConstMat(device_x.data(), n, cols), precision, coded_memory.data());
      const std::byte* data = memory.data() + static_cast<size_t>(i % copies) * bytes;
      matmul(inputs, {type, rows, cols, data}, nullptr, Mat(y.data(), n, rows));
    });
    const double flop = 2.0 * static_cast<double>(rows) * static_cast<double>(cols * n);
    std::printf(
        "matmul %-5s %6lld x %5lld, %4lld rows, %d planes: %9.4f ms %7.0f GB/s %5.1f %% "
        "%7.1f TFLOP/s\n",
        std::string(format(type).name).c_str(), static_cast<long long>(rows),
        static_cast<long long>(cols), static_cast<long long>(n),
        precision == Precision::fast ? 1 : 2, ms, gb_per_s(static_cast<double>(bytes), ms),
        100 * gb_per_s(static_cast<double>(bytes), ms) / copy_gb_per_s, flop / ms * 1e-9);
  }
  std::fflush(stdout);
}

void run(int tokens) {
  Device device;
  const bool small = tokens < 4096;
  const double rate = copy_rate(device, small ? size_t{1} << 20 : size_t{4} << 30);
  std::printf("%s, %d multiprocessors: copies %.0f GB/s, read and written\n", device.name().c_str(),
              device.multiprocessors(), rate);
  for (const int n : {tokens / 4, tokens}) {
    for (const NamedCache& cache : caches()) bench_attend(device, cache, n, 1, rate);
  }
  const int prompt = small ? 64 : 8192;
  for (const NamedCache& cache : {caches()[0], caches()[2], best("best4", 4)}) {
    bench_attend(device, cache, prompt, small ? 16 : 512, rate);
  }
  const int64_t width = small ? 256 : 4096;
  const int64_t ffn = small ? 512 : 14336;
  for (const WeightType type : {WeightType::q4_k, WeightType::q8_0, WeightType::q6_k}) {
    for (const int64_t n : {1, 4, 8}) {
      bench_matmul(device, type, width, width, n, rate);
      bench_matmul(device, type, ffn, width, n, rate);
      bench_matmul(device, type, width, ffn, n, rate);
    }
    bench_matmul(device, type, small ? 512 : 128256, width, 1, rate);
    bench_matmul(device, type, ffn, width, small ? 64 : 2048, rate);
  }
}

}  // namespace
}  // namespace kve::cuda

int main(int argc, char** argv) {
  int tokens = 131072;
  if (argc == 3 && std::strcmp(argv[1], "--tokens") == 0) {
    tokens = std::atoi(argv[2]);
  } else if (argc != 1) {
    tokens = 0;
  }
  if (tokens < 256 || tokens > 1 << 20 || tokens % 256 != 0) {
    std::fprintf(stderr, "cuda_bench: expected nothing, or --tokens and a multiple of 256\n");
    return 2;
  }
  try {
    kve::cuda::run(tokens);
  } catch (const kve::Error& error) {
    std::fprintf(stderr, "cuda_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
