// Times whole passes on a GPU, of a model of Llama-3-8B's shape (or of fewer layers) with seeded
// random weights that it writes first, for machines that have nothing but this program:
//   cuda_model FOLDER [--type q4_k|q8_0] [--layers N] [--depths 0,32768] [--caches f16,best4]
//              [--limit 1GiB]
// For every cache it reads a prompt up to each depth in chunks of 512 tokens, then decodes 32
// tokens: rates, the cache's bytes, the steps that were replayed as a graph, and how far the logits
// of the first chunk are from those of the CPU with f32 activations (--check: a few minutes).
// --limit: of the GPU's memory for pages; then also what was spilled, and how many layers of steps
// found their pages in time.
// What such a model says is noise; what it costs is what a trained one would.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "base/byte_size.h"
#include "base/error.h"
#include "cache/kv_cache.h"
#include "formats/weight_formats.h"
#include "gguf/gguf_file.h"
#include "gguf/gguf_writer.h"
#include "kernels/cuda/cuda_backend.h"
#include "models/decoder.h"

namespace kve::cuda {
namespace {

constexpr int kWidth = 4096;
constexpr int kFfn = 14336;
constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kVocabulary = 128256;
constexpr int kChunk = 512;
constexpr int kDecoded = 32;
constexpr int kPoolRows = 64;  // distinct rows of each type and length

struct Options {
  std::filesystem::path folder;
  WeightType type = WeightType::q4_k;
  int layers = 32;
  std::vector<int> depths = {0, 32768, 131072};
  std::vector<std::string> caches = {"f16", "best4"};
  double limit = 0;  // bytes; 0: none
  bool check = false;
};

// Matrices whose rows are taken from a pool of noise.
class RandomModel {
 public:
  explicit RandomModel(const Options& options) : options_(options) {}

  void write(const std::filesystem::path& path) {
    const auto number = [&](const char* key, int value) {
      writer_.set(std::string("llama.") + key, static_cast<uint32_t>(value));
    };
    writer_.set("general.architecture", "llama");
    number("block_count", options_.layers);
    number("context_length", 1 << 20);
    number("embedding_length", kWidth);
    number("feed_forward_length", kFfn);
    number("attention.head_count", kHeads);
    number("attention.head_count_kv", kKvHeads);
    number("attention.key_length", kHeadDim);
    number("attention.value_length", kHeadDim);
    number("rope.dimension_count", kHeadDim);
    number("vocab_size", kVocabulary);
    writer_.set("llama.rope.freq_base", 500000.0f);
    writer_.set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    const std::vector<std::string> pieces(kVocabulary, "x");
    writer_.set_array<std::string>("tokenizer.ggml.tokens", pieces);
    matrix("token_embd.weight", kVocabulary, kWidth);
    matrix("output.weight", kVocabulary, kWidth);
    ones("output_norm.weight");
    for (int i = 0; i < options_.layers; ++i) {
      const std::string at = "blk." + std::to_string(i) + ".";
      ones(at + "attn_norm.weight");
      ones(at + "ffn_norm.weight");
      matrix(at + "attn_q.weight", kHeads * kHeadDim, kWidth);
      matrix(at + "attn_k.weight", kKvHeads * kHeadDim, kWidth);
      matrix(at + "attn_v.weight", kKvHeads * kHeadDim, kWidth);
      matrix(at + "attn_output.weight", kWidth, kHeads * kHeadDim);
      matrix(at + "ffn_gate.weight", kFfn, kWidth);
      matrix(at + "ffn_up.weight", kFfn, kWidth);
      matrix(at + "ffn_down.weight", kWidth, kFfn);
    }
    writer_.write(path);
  }

 private:
  const std::vector<std::byte>& pool(int64_t cols) {
    std::vector<std::byte>& rows = pools_[cols];
    if (!rows.empty()) return rows;
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(cols)));
    std::vector<float> values(static_cast<size_t>(kPoolRows * cols));
    for (float& value : values) value = normal(random_);
    rows.resize(kPoolRows * row_bytes(options_.type, cols));
    format(options_.type).encode(values.data(), rows.data(), kPoolRows * cols);
    return rows;
  }
  void matrix(const std::string& name, int64_t rows, int64_t cols) {
    const std::vector<std::byte>& from = pool(cols);
    const size_t bytes = row_bytes(options_.type, cols);
    const auto seed = static_cast<unsigned>(random_());
    writer_.add_tensor(name, options_.type, {cols, rows}, [&from, bytes, seed](auto out) {
      std::minstd_rand draw(seed);
      for (size_t at = 0; at < out.size(); at += bytes) {
        std::memcpy(out.data() + at, from.data() + draw() % kPoolRows * bytes, bytes);
      }
    });
  }
  void ones(const std::string& name) {
    writer_.add_tensor(name, WeightType::f32, {kWidth}, [](auto out) {
      const float one = 1;
      for (size_t at = 0; at < out.size(); at += 4) std::memcpy(out.data() + at, &one, 4);
    });
  }

  const Options& options_;
  std::mt19937 random_{1};
  std::map<int64_t, std::vector<std::byte>> pools_;
  GgufWriter writer_;
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A model on one backend, and one sequence at a time.
class Run {
 public:
  Run(std::shared_ptr<const GgufFile> file, Backend& backend)
      : spec_(describe(*file)), weights_(std::move(file), spec_), backend_(backend) {
    weights_.repack(backend);
    weights_.keep(backend);
    decoder_ = std::make_unique<Decoder>(spec_, weights_, backend);
  }

  void start(const std::string& cache) {
    cache_ = std::make_unique<KvCache>(CacheSpec::parse(cache), spec_.cache_shape(), RowScorer{},
                                       backend_.memory());
    n_ = 0;
  }
  // The logits of the last of n tokens; `goes_on`: the prompt is longer.
  const std::vector<float>& pass(int n, bool goes_on, bool exact = false) {
    tokens_.clear();
    for (int i = 0; i < n; ++i, ++n_) {
      tokens_.push_back(static_cast<Token>((int64_t{n_} * 7919 + 11) % kVocabulary));
    }
    logits_.resize(kVocabulary);
    const Batch::Slice slice{.cache = cache_.get(),
                             .tokens = tokens_,
                             .logits = Mat(logits_.data(), 1, kVocabulary),
                             .prompt_goes_on = goes_on};
    decoder_->forward({.slices = {&slice, 1}, .exact = exact});
    return logits_;
  }
  int n() const { return n_; }
  KvCache& cache() { return *cache_; }

 private:
  ModelSpec spec_;
  ModelWeights weights_;
  Backend& backend_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<KvCache> cache_;
  int n_ = 0;
  std::vector<Token> tokens_;
  std::vector<float> logits_;
};

double divergence(const std::vector<float>& expected, const std::vector<float>& found) {
  const auto log_sum = [](const std::vector<float>& values) {
    double total = 0;
    for (const float value : values) total += std::exp(double{value});
    return std::log(total);
  };
  const double p_sum = log_sum(expected);
  const double q_sum = log_sum(found);
  double sum = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double p = double{expected[i]} - p_sum;
    sum += std::exp(p) * (p - (double{found[i]} - q_sum));
  }
  return sum;
}

void bench(Run& run, CudaBackend& gpu, const Options& options, const std::string& cache) {
  run.start(cache);
  run.pass(1, true);  // what is done once
  for (const int depth : options.depths) {
    const int before = run.n();
    Clock::time_point start = Clock::now();
    while (run.n() < depth) run.pass(std::min(kChunk, depth - run.n()), run.n() + kChunk < depth);
    const double prompt = seconds_since(start);
    const int64_t replays = gpu.replays();
    const int64_t in_time = gpu.staging().in_time();
    const int64_t late = gpu.staging().late();
    std::vector<double> steps;
    for (int i = 0; i < kDecoded; ++i) {
      start = Clock::now();
      run.pass(1, false);
      steps.push_back(seconds_since(start));
    }
    std::sort(steps.begin(), steps.end());
    const double rate = run.n() - kDecoded > before ? (run.n() - kDecoded - before) / prompt : 0;
    std::printf(
        "%-8s depth %7d: prompt %8.0f tokens/s, decode %7.1f tokens/s (%.3f ms, worst "
        "%.3f), %d of %d steps replayed, cache %.3f GiB\n",
        cache.c_str(), depth, rate, 1 / steps[kDecoded / 2], 1e3 * steps[kDecoded / 2],
        1e3 * steps.back(), static_cast<int>(gpu.replays() - replays), kDecoded,
        static_cast<double>(run.cache().stats().bytes) * 0x1p-30);
    if (options.limit > 0) {
      std::printf("%-8s spilled %.3f GiB, %d layers in time, %d late\n", cache.c_str(),
                  static_cast<double>(run.cache().stats().spilled) * 0x1p-30,
                  static_cast<int>(gpu.staging().in_time() - in_time),
                  static_cast<int>(gpu.staging().late() - late));
    }
    std::fflush(stdout);
  }
}

void run_all(const Options& options) {
  const std::string name = std::string(format(options.type).name) + "-" +
                           std::to_string(options.layers) + "-layers.gguf";
  const std::filesystem::path path = options.folder / name;
  if (!std::filesystem::exists(path)) RandomModel(options).write(path);
  const auto file = GgufFile::open(path);
  CudaBackend gpu(make_cpu_backend(8), static_cast<size_t>(options.limit));
  Run run(file, gpu);
  std::printf("%s, %s, %.2f GiB of weights\n", std::string(gpu.name()).c_str(), name.c_str(),
              static_cast<double>(std::filesystem::file_size(path)) * 0x1p-30);
  if (options.check) {
    const auto cpu = make_cpu_backend(8);
    Run reference(file, *cpu);
    reference.start("f16");
    run.start("f16");
    const std::vector<float> expected = reference.pass(64, false, true);
    std::printf("KLD to the CPU: %.2e exact", divergence(expected, run.pass(64, false, true)));
    run.start("f16");
    std::printf(", %.2e in int8\n", divergence(expected, run.pass(64, false)));
  }
  for (const std::string& cache : options.caches) bench(run, gpu, options, cache);
}

std::vector<std::string> words(const std::string& list) {
  std::vector<std::string> out;
  std::istringstream in(list);
  for (std::string word; std::getline(in, word, ',');) out.push_back(word);
  return out;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--check") {
      options.check = true;
    } else if (name.starts_with("--") && i + 1 < argc) {
      const std::string value = argv[++i];
      if (name == "--type" && (value == "q4_k" || value == "q8_0")) {
        options.type = value == "q4_k" ? WeightType::q4_k : WeightType::q8_0;
      } else if (name == "--layers") {
        options.layers = std::stoi(value);
      } else if (name == "--depths") {
        options.depths.clear();
        for (const std::string& word : words(value)) options.depths.push_back(std::stoi(word));
      } else if (name == "--caches") {
        options.caches = words(value);
      } else if (name == "--limit" && parse_byte_size(value) >= 1) {
        options.limit = parse_byte_size(value);
      } else {
        throw ConfigError(message("unknown option ", name, " ", value));
      }
    } else {
      options.folder = name;
    }
  }
  if (options.folder.empty() || options.layers < 1) {
    throw ConfigError("expected a folder for the model, and at least one layer");
  }
  return options;
}

}  // namespace
}  // namespace kve::cuda

int main(int argc, char** argv) {
  try {
    kve::cuda::run_all(kve::cuda::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_model: %s\n", error.what());
    return 1;
  }
  return 0;
}
