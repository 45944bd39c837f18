// The forward pass written out naively in double precision: an independent statement of what the
// architectures compute, for tests. One sequence, no cache, decoded weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <vector>

#include "kvengine.h"
#include "models/rope.h"

namespace kve::test {

using Row = std::vector<double>;

class ReferenceDecoder {
 public:
  explicit ReferenceDecoder(const Model& model)
      : model_(model), weights_(open(model), model.spec()) {}

  // What a layer's heads multiply, rotated: q [tokens.size()][n_heads * head_dim], k
  // [tokens.size()][n_kv_heads * head_dim]; what they are products of, x [tokens.size()][d_model];
  // and `written` [tokens.size()][n_heads], the norm of what a query head that attends to one token
  // only adds to the residual stream.
  struct Heads {
    std::vector<Row> q;
    std::vector<Row> k;
    std::vector<Row> x;
    std::vector<Row> written;
  };
  // Of every layer.
  std::vector<Heads> heads(std::span<const Token> tokens) const {
    std::vector<Heads> out;
    heads_ = &out;
    logits(tokens);
    heads_ = nullptr;
    return out;
  }

  // [tokens.size()][vocab_size]
  std::vector<Row> logits(std::span<const Token> tokens) const {
    const ModelSpec& spec = model_.spec();
    std::vector<Row> x;
    for (const Token token : tokens) {
      x.push_back(row_of(weights_.embedding, token));
      for (double& value : x.back()) value *= spec.embed_scale;
    }
    for (size_t i = 0; i < spec.layers.size(); ++i) {
      const LayerSpec& layer = spec.layers[i];
      const LayerWeights& w = weights_.layers[i];
      const bool sandwich = layer.norm == NormPlacement::sandwich;
      std::vector<Row> block =
          attention(normed(x, w.attention_norm.weight), layer.attention, w.attention);
      if (sandwich) block = normed(block, w.attention_post_norm.weight);
      add(x, block);
      block = ffn(normed(x, w.ffn_norm.weight), layer.ffn, w.ffn);
      if (sandwich) block = normed(block, w.ffn_post_norm.weight);
      add(x, block);
    }
    return product(normed(x, weights_.output_norm.weight), weights_.output);
  }

 private:
  static std::shared_ptr<const GgufFile> open(const Model& model) {
    return GgufFile::open(model.file().path());
  }

  static Row row_of(const Weight& weight, int64_t row) {
    std::vector<float> values(static_cast<size_t>(weight.cols));
    format(weight.type)
        .decode(weight.data + static_cast<size_t>(row) * weight.row_bytes, values.data(),
                weight.cols);
    return {values.begin(), values.end()};
  }

  static std::vector<Row> product(const std::vector<Row>& x, const Weight& weight) {
    std::vector<Row> y(x.size(), Row(static_cast<size_t>(weight.rows)));
    for (int64_t r = 0; r < weight.rows; ++r) {
      const Row w = row_of(weight, r);
      for (size_t i = 0; i < x.size(); ++i) {
        y[i][static_cast<size_t>(r)] = std::inner_product(w.begin(), w.end(), x[i].begin(), 0.0);
      }
    }
    return y;
  }

  void norm_span(std::span<double> values, const Vector& weight) const {
    double squares = 0;
    for (const double value : values) squares += value * value;
    const double scale =
        1 / std::sqrt(squares / static_cast<double>(values.size()) + model_.spec().norm_eps);
    for (size_t i = 0; i < values.size(); ++i) values[i] *= scale * weight[i];
  }
  std::vector<Row> normed(std::vector<Row> x, const Vector& weight) const {
    for (Row& row : x) norm_span(row, weight);
    return x;
  }

  static void add(std::vector<Row>& x, const std::vector<Row>& y) {
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t j = 0; j < x[i].size(); ++j) x[i][j] += y[i][j];
    }
  }

  void rotate(std::span<double> head, size_t position, const RopeSpec& rope) const {
    const RopeTable table(rope);
    const std::span<const double> frequencies = table.frequencies();
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const bool pairs = rope.layout == RopeLayout::interleaved;
      double& a = pairs ? head[2 * i] : head[i];
      double& b = pairs ? head[2 * i + 1] : head[i + frequencies.size()];
      const double angle = static_cast<double>(position) * frequencies[i];
      const double rotated = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = rotated;
    }
  }

  void prepare_heads(std::vector<Row>& x, const AttentionSpec& spec, const Vector& norm) const {
    const auto d = static_cast<size_t>(spec.head_dim);
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t h = 0; h < x[t].size(); h += d) {
        const std::span<double> head(x[t].data() + h, d);
        if (spec.qk_norm) norm_span(head, norm);
        rotate(head, t, model_.spec().ropes[static_cast<size_t>(spec.rope)]);
      }
    }
  }

  std::vector<Row> attention(const std::vector<Row>& x, const AttentionSpec& spec,
                             const AttentionWeights& w) const {
    std::vector<Row> q = product(x, w.q), k = product(x, w.k), v = product(x, w.v);
    prepare_heads(q, spec, w.q_norm);
    prepare_heads(k, spec, w.k_norm);
    if (heads_ != nullptr) heads_->push_back({q, k, x, written(v, spec, w)});
    std::vector<Row> mixed(x.size(), Row(static_cast<size_t>(spec.n_heads * spec.value_dim)));
    for (size_t t = 0; t < x.size(); ++t) {
      for (int h = 0; h < spec.n_heads; ++h) attend(q, k, v, spec, t, h, mixed[t]);
    }
    return product(mixed, w.o);
  }

  static std::vector<Row> written(const std::vector<Row>& v, const AttentionSpec& spec,
                                  const AttentionWeights& w) {
    const auto n_heads = static_cast<size_t>(spec.n_heads);
    const auto dim = static_cast<size_t>(spec.value_dim);
    std::vector<Row> out(v.size(), Row(n_heads));
    for (size_t h = 0; h < n_heads; ++h) {
      const size_t kv = h / static_cast<size_t>(spec.n_heads / spec.n_kv_heads);
      std::vector<Row> alone(v.size(), Row(n_heads * dim));
      for (size_t t = 0; t < v.size(); ++t) {
        std::copy_n(v[t].begin() + static_cast<long>(kv * dim), dim,
                    alone[t].begin() + static_cast<long>(h * dim));
      }
      const std::vector<Row> rows = product(alone, w.o);
      for (size_t t = 0; t < v.size(); ++t) {
        out[t][h] =
            std::sqrt(std::inner_product(rows[t].begin(), rows[t].end(), rows[t].begin(), 0.0));
      }
    }
    return out;
  }

  static void attend(const std::vector<Row>& q, const std::vector<Row>& k,
                     const std::vector<Row>& v, const AttentionSpec& spec, size_t t, int h,
                     Row& out) {
    const auto kd = static_cast<size_t>(spec.head_dim), vd = static_cast<size_t>(spec.value_dim);
    const auto kv = static_cast<size_t>(h / (spec.n_heads / spec.n_kv_heads));
    const auto window = static_cast<size_t>(spec.window);
    const size_t first = window > 0 && t + 1 > window ? t + 1 - window : 0;
    Row p;
    for (size_t s = first; s <= t; ++s) {
      double score = 0;
      for (size_t i = 0; i < kd; ++i)
        score += q[t][static_cast<size_t>(h) * kd + i] * k[s][kv * kd + i];
      score *= spec.scale;
      p.push_back(spec.softcap > 0 ? spec.softcap * std::tanh(score / spec.softcap) : score);
    }
    const double max = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& value : p) sum += value = std::exp(value - max);
    for (size_t s = first; s <= t; ++s) {
      for (size_t i = 0; i < vd; ++i) {
        out[static_cast<size_t>(h) * vd + i] += p[s - first] / sum * v[s][kv * vd + i];
      }
    }
  }

  static std::vector<Row> ffn(const std::vector<Row>& x, const FfnSpec& spec, const FfnWeights& w) {
    std::vector<Row> gate = product(x, w.gate);
    const std::vector<Row> up = product(x, w.up);
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t i = 0; i < gate[t].size(); ++i) {
        gate[t][i] = activate(spec.activation, gate[t][i]) * up[t][i];
      }
    }
    return product(gate, w.down);
  }

  static double activate(Activation activation, double x) {
    switch (activation) {
      case Activation::silu:
        return x / (1 + std::exp(-x));
      case Activation::gelu_tanh:
        return 0.5 * x *
               (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
      case Activation::gelu_erf:
        return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2));
      case Activation::relu:
        return std::max(x, 0.0);
    }
    return 0;
  }

  const Model& model_;
  ModelWeights weights_;
  mutable std::vector<Heads>* heads_ = nullptr;
};

}  // namespace kve::test
