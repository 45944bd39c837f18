// InfLLM (arXiv 2402.04617) in float64, token by token, from the definition: what a cache with
// blocks must give. It shares with it how numbers are rounded when they are stored, and nothing
// else.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "base/half.h"
#include "cache/select_testing.h"

namespace kve {

class ReferenceInfLlm {
 public:
  // Of one layer whose rows are `tokens`; `codec` is that of the blocks.
  ReferenceInfLlm(const TokenRows& tokens, size_t layer, const SelectorSpec& spec,
                  const CodecSpec& codec)
      : tokens_(tokens),
        layer_(layer),
        shape_(tokens.shapes()[layer]),
        params_(select_params(shape_.n_kv_heads)),
        spec_(spec),
        codec_(codec) {}

  // Attention of the next n tokens, one span: [n][n_heads * value_dim].
  std::vector<double> attend(int n) {
    read(n);
    choose_blocks(n);
    std::vector<double> out;
    for (int p = end_ - n; p < end_; ++p) {
      for (int h = 0; h < params_.n_heads; ++h) add_output(p, h, &out);
    }
    form_blocks();
    return out;
  }

  int n_blocks() const { return static_cast<int>(representatives_.size()); }
  const std::vector<int>& retrieved() const { return retrieved_; }

 private:
  using Row = std::vector<double>;

  static double rounded(double x) { return half_to_float(float_to_half(static_cast<float>(x))); }

  Row turned(Row row, double distance) const {
    const std::vector<double>& frequencies = shape_.rotation->frequencies;
    const size_t half = frequencies.size();
    for (size_t i = 0; i < half; ++i) {
      const double c = std::cos(distance * frequencies[i]);
      const double s = std::sin(distance * frequencies[i]);
      const double x = row[i];
      const double y = row[i + half];
      row[i] = c * x - s * y;
      row[i + half] = s * x + c * y;
    }
    return row;
  }

  static Row part(ConstMat rows, int row, int head, int dim, bool round) {
    Row out;
    for (int c = 0; c < dim; ++c) {
      const double x = rows.row(row)[head * dim + c];
      out.push_back(round ? rounded(x) : x);
    }
    return out;
  }

  // Keys and values of the next n tokens, as they are and as they will be far away.
  void read(int n) {
    const ConstMat k = tokens_.k(layer_, end_, n);
    const ConstMat v = tokens_.v(layer_, end_, n);
    keys_.resize(static_cast<size_t>(shape_.n_kv_heads));
    far_keys_.resize(keys_.size());
    values_.resize(keys_.size());
    far_values_.resize(keys_.size());
    for (int i = 0; i < n; ++i) {
      for (int h = 0; h < shape_.n_kv_heads; ++h) {
        const auto head = static_cast<size_t>(h);
        const Row key = part(k, i, h, kSelectDim, true);
        Row far = turned(key, -(end_ + i));
        for (double& x : far) x = rounded(x);
        keys_[head].push_back(key);
        far_keys_[head].push_back(far);
        values_[head].push_back(part(v, i, h, kSelectDim, true));
        far_values_[head].push_back(values_[head].back());
      }
    }
    mass_.resize(static_cast<size_t>(params_.n_heads));
    for (std::vector<double>& rows : mass_) rows.resize(static_cast<size_t>(end_ + n));
    end_ += n;
  }

  Row query(int p, int h) const { return part(tokens_.q(layer_, p, 1), 0, h, kSelectDim, false); }
  Row far_query(int p, int h) const { return turned(query(p, h), spec_.local - 1 - p); }

  void choose_blocks(int n) {
    retrieved_.resize(static_cast<size_t>(n_blocks()));
    std::iota(retrieved_.begin(), retrieved_.end(), 0);
    if (n_blocks() <= spec_.topk) return;
    std::vector<double> scores(static_cast<size_t>(n_blocks()));
    for (int h = 0; h < params_.n_heads; ++h) {
      Row mean(kSelectDim);
      for (int p = end_ - n; p < end_; ++p) {
        const Row q = far_query(p, h);
        for (size_t c = 0; c < mean.size(); ++c) mean[c] += q[c] / n;
      }
      for (size_t b = 0; b < scores.size(); ++b) {
        const Row& key = representatives_[b][static_cast<size_t>(h)];
        scores[b] += std::inner_product(mean.begin(), mean.end(), key.begin(), 0.0);
      }
    }
    std::ranges::stable_sort(retrieved_, [&](int a, int b) {
      return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
    });
    retrieved_.resize(static_cast<size_t>(spec_.topk));
    std::ranges::sort(retrieved_);
  }

  // The block of a token, -1 for one of the first, and n_blocks() or more for the remainder.
  int block_of(int j) const { return j < spec_.init ? -1 : (j - spec_.init) / spec_.block; }

  void add_output(int p, int h, std::vector<double>* out) {
    const auto kv = static_cast<size_t>(h / (params_.n_heads / params_.n_kv_heads));
    const Row near = query(p, h);
    const Row far = far_query(p, h);
    const std::set<int> chosen(retrieved_.begin(), retrieved_.end());
    std::vector<int> seen;
    std::vector<double> weights;
    double sum = 0;
    for (int j = 0; j <= p; ++j) {
      const auto row = static_cast<size_t>(j);
      const bool local = p - j < spec_.local;
      const int block = block_of(j);
      if (!local && block >= 0 && block < n_blocks() && !chosen.contains(block)) continue;
      const Row& q = local ? near : far;
      const Row& key = local ? keys_[kv][row] : far_keys_[kv][row];
      const double score = std::inner_product(q.begin(), q.end(), key.begin(), 0.0);
      seen.push_back(j);
      weights.push_back(std::exp(double{params_.scale} * score));
      sum += weights.back();
    }
    Row output(kSelectDim);
    for (size_t i = 0; i < seen.size(); ++i) {
      const auto row = static_cast<size_t>(seen[i]);
      const bool local = p - seen[i] < spec_.local;
      const double weight = weights[i] / sum;
      if (local) mass_[static_cast<size_t>(h)][row] += weight;
      const Row& value = local ? values_[kv][row] : far_values_[kv][row];
      for (size_t c = 0; c < output.size(); ++c) output[c] += weight * value[c];
    }
    out->insert(out->end(), output.begin(), output.end());
  }

  void form_blocks() {
    while (end_ - spec_.local - spec_.init - n_blocks() * spec_.block >= spec_.block) {
      const int first = spec_.init + n_blocks() * spec_.block;
      std::vector<Row> names;
      for (int h = 0; h < params_.n_heads; ++h) {
        const auto kv = static_cast<size_t>(h / (params_.n_heads / params_.n_kv_heads));
        std::vector<int> order(static_cast<size_t>(spec_.block));
        std::iota(order.begin(), order.end(), first);
        std::ranges::stable_sort(order, [&](int a, int b) {
          const std::vector<double>& mass = mass_[static_cast<size_t>(h)];
          return mass[static_cast<size_t>(a)] > mass[static_cast<size_t>(b)];
        });
        Row mean(kSelectDim);
        for (int i = 0; i < spec_.representatives; ++i) {
          const Row& key = far_keys_[kv][static_cast<size_t>(order[static_cast<size_t>(i)])];
          for (size_t c = 0; c < mean.size(); ++c) mean[c] += key[c] / spec_.representatives;
        }
        for (double& x : mean) x = rounded(x);
        names.push_back(mean);
      }
      representatives_.push_back(names);
      for (std::vector<Row>& rows : far_keys_) code(first, false, &rows);
      for (std::vector<Row>& rows : far_values_) code(first, true, &rows);
    }
  }

  // Rows of a block as its codec gives them back.
  void code(int first, bool values, std::vector<Row>* rows) const {
    const PageFormat format = page_format(codec_, kSelectDim, values);
    std::vector<std::byte> page(page_bytes(format));
    std::vector<std::byte> scratch(encode_scratch(format));
    std::vector<float> floats(size_t{kPageTokens} * kSelectDim);
    for (int at = first; at < first + spec_.block; at += kPageTokens) {
      for (size_t i = 0; i < floats.size(); ++i) {
        floats[i] =
            static_cast<float>((*rows)[static_cast<size_t>(at) + i / kSelectDim][i % kSelectDim]);
      }
      EXPECT_TRUE(encode_rows(format, floats.data(), kSelectDim, page.data(), 0, kPageTokens,
                              scratch.data()));
      decode_rows(format, page.data(), 0, kPageTokens, 0, kSelectDim, floats.data(), kSelectDim);
      for (size_t i = 0; i < floats.size(); ++i) {
        (*rows)[static_cast<size_t>(at) + i / kSelectDim][i % kSelectDim] = floats[i];
      }
    }
  }

  const TokenRows& tokens_;
  size_t layer_;
  LayerShape shape_;
  AttendParams params_;
  SelectorSpec spec_;
  CodecSpec codec_;
  int end_ = 0;                                                          // tokens read
  std::vector<std::vector<Row>> keys_, far_keys_, values_, far_values_;  // [kv head][token]
  std::vector<std::vector<double>> mass_;                                // [query head][token]
  std::vector<std::vector<Row>> representatives_;                        // [block][query head]
  std::vector<int> retrieved_;
};

}  // namespace kve
