// Seeded tiny models written to disk, for tests that need a whole model and not its quality.
#pragma once

#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "kvengine.h"

namespace kve::test {

struct TinyModel {
  std::string arch = "llama";
  int d_model = 64;
  int n_layers = 2;
  int n_heads = 4;
  int n_kv_heads = 2;
  int head_dim = 32;
  int d_ff = 96;
  int n_ctx = 4096;
  int window = 0;
  WeightType type = WeightType::f32;  // of the matrices
  uint32_t seed = 1;
  std::vector<std::string> extra_pieces = {};  // of the vocabulary
  float key_bias = 0;       // of the second channel of the last head of keys, in every layer
  Token broken = kNoToken;  // its embedding is NaN (and the output matrix is another one)
};

// SPM: unknown, begin, end, the 256 bytes, then letters.
inline std::vector<std::string> tiny_pieces(const std::vector<std::string>& extra = {}) {
  std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    std::snprintf(text, sizeof(text), "<0x%02X>", byte);
    pieces.emplace_back(text);
  }
  pieces.emplace_back("\xe2\x96\x81");
  for (char c = 'a'; c <= 'z'; ++c) pieces.emplace_back(1, c);
  pieces.insert(pieces.end(), extra.begin(), extra.end());
  return pieces;
}

inline void set_vocabulary(GgufWriter& writer, const std::vector<std::string>& extra = {}) {
  const std::vector<std::string> pieces = tiny_pieces(extra);
  std::vector<float> scores(pieces.size());
  std::vector<int32_t> kinds(pieces.size(), 1);
  for (size_t i = 0; i < pieces.size(); ++i) {
    scores[i] = -static_cast<float>(i);
    if (i == 0) kinds[i] = 2;
    if (i == 1 || i == 2) kinds[i] = 3;
    if (i >= 3 && i < 259) kinds[i] = 6;
  }
  writer.set("tokenizer.ggml.model", "llama");
  writer.set_array<std::string>("tokenizer.ggml.tokens", pieces);
  writer.set_array<float>("tokenizer.ggml.scores", scores);
  writer.set_array<int32_t>("tokenizer.ggml.token_type", kinds);
  writer.set("tokenizer.ggml.bos_token_id", uint32_t{1});
  writer.set("tokenizer.ggml.eos_token_id", uint32_t{2});
}

class TinyWriter {
 public:
  explicit TinyWriter(const TinyModel& model) : model_(model), random_(model.seed) {}

  GgufWriter& build() {
    const TinyModel& m = model_;
    const auto key = [&](const char* name) { return m.arch + "." + name; };
    writer_.set("general.architecture", m.arch);
    writer_.set(key("block_count"), static_cast<uint32_t>(m.n_layers));
    writer_.set(key("context_length"), static_cast<uint32_t>(m.n_ctx));
    writer_.set(key("embedding_length"), static_cast<uint32_t>(m.d_model));
    writer_.set(key("feed_forward_length"), static_cast<uint32_t>(m.d_ff));
    writer_.set(key("attention.head_count"), static_cast<uint32_t>(m.n_heads));
    writer_.set(key("attention.head_count_kv"), static_cast<uint32_t>(m.n_kv_heads));
    writer_.set(key("attention.key_length"), static_cast<uint32_t>(m.head_dim));
    writer_.set(key("attention.value_length"), static_cast<uint32_t>(m.head_dim));
    writer_.set(key("attention.layer_norm_rms_epsilon"), 1e-5f);
    if (m.window > 0) writer_.set(key("attention.sliding_window"), static_cast<uint32_t>(m.window));
    set_vocabulary(writer_, m.extra_pieces);
    const auto vocab = static_cast<int64_t>(tiny_pieces(m.extra_pieces).size());
    matrix("token_embd.weight", vocab, m.d_model, m.broken);
    if (m.broken != kNoToken) matrix("output.weight", vocab, m.d_model);
    vector("output_norm.weight", m.d_model);
    for (int i = 0; i < m.n_layers; ++i) add_layer("blk." + std::to_string(i) + ".");
    return writer_;
  }

 private:
  void add_layer(const std::string& prefix) {
    const TinyModel& m = model_;
    const int64_t q = m.n_heads * m.head_dim;
    const int64_t kv = m.n_kv_heads * m.head_dim;
    vector(prefix + "attn_norm.weight", m.d_model);
    vector(prefix + "ffn_norm.weight", m.d_model);
    matrix(prefix + "attn_q.weight", q, m.d_model);
    matrix(prefix + "attn_k.weight", kv, m.d_model);
    if (m.key_bias != 0) {
      std::vector<float> bias(static_cast<size_t>(kv));
      bias[static_cast<size_t>(kv - m.head_dim + 1)] = m.key_bias;
      vector(prefix + "attn_k.bias", bias);
    }
    matrix(prefix + "attn_v.weight", kv, m.d_model);
    matrix(prefix + "attn_output.weight", m.d_model, q);
    matrix(prefix + "ffn_gate.weight", m.d_ff, m.d_model);
    matrix(prefix + "ffn_up.weight", m.d_ff, m.d_model);
    matrix(prefix + "ffn_down.weight", m.d_model, m.d_ff);
    if (m.arch == "gemma3") {
      vector(prefix + "attn_q_norm.weight", m.head_dim);
      vector(prefix + "attn_k_norm.weight", m.head_dim);
      vector(prefix + "post_attention_norm.weight", m.d_model);
      vector(prefix + "post_ffw_norm.weight", m.d_model);
    }
  }

  void matrix(const std::string& name, int64_t rows, int64_t cols, int64_t broken = -1) {
    std::normal_distribution<float> normal(0, 1.5f / std::sqrt(static_cast<float>(cols)));
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float& value : values) value = normal(random_);
    for (int64_t i = 0; broken >= 0 && i < cols; ++i) values[broken * cols + i] = NAN;
    const WeightFormat& type = format(model_.type);
    std::vector<std::byte> bytes(static_cast<size_t>(rows) * row_bytes(model_.type, cols));
    type.encode(values.data(), bytes.data(), rows * cols);
    add(name, model_.type, {cols, rows}, std::move(bytes));
  }
  void vector(const std::string& name, int64_t size) {
    std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
    std::vector<float> values(static_cast<size_t>(size));
    for (float& value : values) value = uniform(random_);
    vector(name, values);
  }
  void vector(const std::string& name, const std::vector<float>& values) {
    std::vector<std::byte> bytes(values.size() * sizeof(float));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    add(name, WeightType::f32, {static_cast<int64_t>(values.size())}, std::move(bytes));
  }
  void add(const std::string& name, WeightType type, std::vector<int64_t> shape,
           std::vector<std::byte> bytes) {
    writer_.add_tensor(name, type, std::move(shape), [data = std::move(bytes)](auto out) {
      std::memcpy(out.data(), data.data(), data.size());
    });
  }

  TinyModel model_;
  std::mt19937 random_;
  GgufWriter writer_;
};

inline std::shared_ptr<Model> load_tiny(const TemporaryFolder& folder, const TinyModel& tiny,
                                        int threads = 1, std::string isa = {}) {
  const std::filesystem::path path = folder.path() / "tiny.gguf";
  TinyWriter(tiny).build().write(path);
  LoadOptions options;
  options.threads = threads;
  options.isa = std::move(isa);
  return Model::load(path, options);
}

// Ids that look like text of the tiny vocabulary.
inline std::vector<Token> random_tokens(int n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Token> tokens(static_cast<size_t>(n));
  for (Token& token : tokens) token = static_cast<Token>(3 + random() % 283);
  return tokens;
}

}  // namespace kve::test
