// Attention over caches of random rows, and what it gives in double precision.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/half.h"
#include "kernels/kernel_testing.h"

namespace kve::test {

// One side of one head, as the cache would hold it: sinks in f16, coded pages of kPageTokens rows,
// the rest in f16.
struct TestSide {
  std::vector<std::vector<std::byte>> pages;
  std::vector<PageView> views;
  std::vector<uint16_t> sinks;
  std::vector<uint16_t> tail;
  std::vector<float> values;  // as decoded, [n_rows, width]
  SideView view;
};

// `coded_rows` is rounded down to what can be coded: whole units.
inline TestSide make_side(const CodecSpec& spec, bool is_values, int n_rows, int width,
                          int sink_rows, int coded_rows, Random& random) {
  const PageFormat format = page_format(spec, width, is_values);
  const int unit = rows_per_unit(format);
  const int sinks_end = std::min(sink_rows, n_rows);
  const int coded_end = sinks_end + std::min(coded_rows, n_rows - sinks_end) / unit * unit;
  std::vector<std::byte> scratch(encode_scratch(format));
  TestSide side;
  side.values = random.normals(int64_t{n_rows} * width);
  for (int row = sinks_end; row < coded_end; row += kPageTokens) {
    const int rows = std::min(kPageTokens, coded_end - row);
    side.pages.emplace_back(page_bytes(format));
    std::byte* page = side.pages.back().data();
    float* values = side.values.data() + int64_t{row} * width;
    EXPECT_TRUE(encode_rows(format, values, width, page, 0, rows, scratch.data()));
    decode_rows(format, page, 0, rows, 0, width, values, width);
    side.views.push_back(
        {page, static_cast<int32_t>(page_bytes(format)), static_cast<int16_t>(rows), 0});
  }
  const auto to_halves = [&](int first, int end, std::vector<uint16_t>* halves) {
    for (int64_t i = int64_t{first} * width; i < int64_t{end} * width; ++i) {
      float& value = side.values[static_cast<size_t>(i)];
      halves->push_back(float_to_half(value));
      value = half_to_float(halves->back());
    }
  };
  to_halves(0, sinks_end, &side.sinks);
  to_halves(coded_end, n_rows, &side.tail);
  side.view.width = side.view.n_channels = side.view.row_stride = width;
  side.view.format = format;
  side.view.pages = side.views;
  side.view.sinks = side.sinks.data();
  side.view.sink_rows = sinks_end;
  side.view.tail = side.tail.data();
  side.view.tail_rows = n_rows - coded_end;
  return side;
}

struct Case {
  int n_heads = 4;
  int n_kv_heads = 2;
  int key_dim = 64;
  int value_dim = 64;
  int n_rows = 200;
  int n_queries = 1;
  int k_tail = 20;
  int v_tail = 20;
  CodecSpec k_codec = {CodecId::f16};
  CodecSpec v_codec = {CodecId::f16};
  int sinks = 0;
  float softcap = 0;
  int window = 0;
  bool alibi = false;
  int first_pos = 0;  // of the cache's first row; where it is not 0, sinks have been dropped
  bool gaps = false;  // tokens were dropped before the queries' own, others for every head
  bool dead = false;  // some rows nobody sees, others for every head
  Precision precision = Precision::exact;
};

struct Problem {
  explicit Problem(const Case& c) : shape(c) {
    Random random(static_cast<uint64_t>(c.n_rows * 7 + c.n_queries * 3 + c.key_dim));
    for (int h = 0; h < c.n_kv_heads; ++h) {
      const auto coded = [&](int tail) { return std::max(0, c.n_rows - c.sinks - tail); };
      k.push_back(
          make_side(c.k_codec, false, c.n_rows, c.key_dim, c.sinks, coded(c.k_tail), random));
      v.push_back(
          make_side(c.v_codec, true, c.n_rows, c.value_dim, c.sinks, coded(c.v_tail), random));
    }
    for (int h = 0; h < c.n_kv_heads; ++h) {
      const auto at = static_cast<size_t>(h);
      heads.push_back({k[at].view, v[at].view, c.n_rows, c.first_pos,
                       c.first_pos > 0 ? c.first_pos % kPageTokens : c.sinks});
      if (c.gaps) positions.push_back(draw_positions(random));
      if (c.dead) dead.push_back(draw_dead(random));
    }
    for (size_t h = 0; h < heads.size(); ++h) {
      if (c.gaps) heads[h].positions = positions[h].data();
      if (c.dead) heads[h].dead = dead[h].data();
    }
    q = random.normals(int64_t{c.n_queries} * c.n_heads * c.key_dim);
    for (int h = 0; h < c.n_heads; ++h) slopes.push_back(std::exp2(-static_cast<float>(h + 1)));
    params = {.n_heads = c.n_heads,
              .n_kv_heads = c.n_kv_heads,
              .key_dim = c.key_dim,
              .value_dim = c.value_dim,
              .scale = 1 / std::sqrt(static_cast<float>(c.key_dim)),
              .softcap = c.softcap,
              .window = c.window,
              .alibi = c.alibi ? slopes.data() : nullptr,
              .precision = c.precision};
  }
  int first_query() const {
    return (shape.gaps ? kGaps * shape.n_rows : shape.first_pos + shape.n_rows) - shape.n_queries;
  }
  int position(int kv_head, int row) const {
    return shape.gaps ? positions[static_cast<size_t>(kv_head)][static_cast<size_t>(row)]
                      : shape.first_pos + row;
  }
  bool is_dead(int kv_head, int row) const {
    if (!shape.dead) return false;
    return (dead[static_cast<size_t>(kv_head)][static_cast<size_t>(row / 64)] >> (row % 64) & 1) !=
           0;
  }
  ConstMat queries() const {
    return {q.data(), shape.n_queries, int64_t{shape.n_heads} * shape.key_dim};
  }

  // log_sums: as in AttendTask, or null. mass: [n_kv_heads][n_rows], to which weights are added, or
  // null.
  std::vector<float> run(Backend& backend, std::vector<float>* log_sums = nullptr,
                         std::vector<float>* mass = nullptr) const {
    std::vector<float> out(static_cast<size_t>(shape.n_queries * shape.n_heads * shape.value_dim),
                           NAN);
    if (log_sums != nullptr) {
      log_sums->assign(static_cast<size_t>(shape.n_queries * shape.n_heads), NAN);
    }
    std::vector<float*> of_heads;
    for (int h = 0; mass != nullptr && h < shape.n_kv_heads; ++h) {
      of_heads.push_back(mass->data() + int64_t{h} * shape.n_rows);
    }
    const AttendTask task = {
        .q = queries(),
        .heads = heads,
        .first_pos = first_query(),
        .out = Mat(out.data(), shape.n_queries, int64_t{shape.n_heads} * shape.value_dim),
        .log_sums = log_sums != nullptr ? log_sums->data() : nullptr,
        .mass = of_heads};
    backend.attend(params, {&task, 1});
    return out;
  }

  // What rows get of every query, [n_kv_heads][n_rows], for queries from `first` on.
  std::vector<double> mass(MassOf what, int first) const {
    std::vector<double> out(static_cast<size_t>(shape.n_kv_heads * shape.n_rows));
    const int group = shape.n_heads / shape.n_kv_heads;
    for (int i = first; i < shape.n_queries; ++i) {
      for (int h = 0; h < shape.n_heads; ++h) {
        const std::vector<double> weights = weights_of(i, h);
        for (int row = 0; row < shape.n_rows; ++row) {
          double& sum = out[static_cast<size_t>(h / group * shape.n_rows + row)];
          const double weight = weights[static_cast<size_t>(row)];
          sum = what == MassOf::most ? std::max(sum, weight) : sum + weight;
        }
      }
    }
    return out;
  }

  std::vector<double> reference() const {
    std::vector<double> out;
    for (int i = 0; i < shape.n_queries; ++i) {
      for (int h = 0; h < shape.n_heads; ++h) {
        const std::vector<double> row = attend_one(i, h);
        out.insert(out.end(), row.begin(), row.end());
      }
    }
    return out;
  }

  Case shape;
  std::vector<TestSide> k, v;
  std::vector<HeadView> heads;
  std::vector<std::vector<int32_t>> positions;
  std::vector<std::vector<uint64_t>> dead;
  std::vector<float> q, slopes;
  AttendParams params;

 private:
  static constexpr int kGaps = 3;  // positions to a row, on average at most

  // Positions end with those of the queries, which have no gaps between them.
  std::vector<int32_t> draw_positions(Random& random) const {
    std::vector<int32_t> out(static_cast<size_t>(shape.n_rows));
    int32_t position = kGaps * shape.n_rows;
    for (int row = shape.n_rows - 1; row >= 0; --row) {
      const bool own = row >= shape.n_rows - shape.n_queries;
      position -= own ? 1 : 1 + static_cast<int32_t>(random.bits() % kGaps);
      out[static_cast<size_t>(row)] = position;
    }
    return out;
  }
  // Never the queries' own rows, so that each sees something; whole tiles, too.
  std::vector<uint64_t> draw_dead(Random& random) const {
    std::vector<uint64_t> out(static_cast<size_t>(shape.n_rows / 64 + 1));
    for (int row = 0; row < shape.n_rows - shape.n_queries; ++row) {
      // Whole tiles, whole blocks of them, and single rows.
      const bool is_dead = row / 100 % 3 == 1 || row / 16 % 4 == 2 || random.bits() % 3 == 0;
      if (is_dead) out[static_cast<size_t>(row / 64)] |= uint64_t{1} << (row % 64);
    }
    return out;
  }

  double score(int i, int h, int row) const {
    const int kv = h / (shape.n_heads / shape.n_kv_heads);
    const float* query = q.data() + (int64_t{i} * shape.n_heads + h) * shape.key_dim;
    const float* key = k[static_cast<size_t>(kv)].values.data() + int64_t{row} * shape.key_dim;
    double s = 0;
    for (int d = 0; d < shape.key_dim; ++d) s += double{query[d]} * double{key[d]};
    s *= double{params.scale};
    if (shape.softcap > 0) s = double{shape.softcap} * std::tanh(s / double{shape.softcap});
    if (shape.alibi) {
      s += double{slopes[static_cast<size_t>(h)]} * (position(kv, row) - (first_query() + i));
    }
    return s;
  }
  // Of all rows, those that the query does not see included.
  std::vector<double> weights_of(int i, int h) const {
    const int kv = h / (shape.n_heads / shape.n_kv_heads);
    const int pos = first_query() + i;
    std::vector<double> weights(static_cast<size_t>(shape.n_rows));
    double total = 0;
    for (int row = 0; row < shape.n_rows; ++row) {
      const int key_pos = position(kv, row);
      if (key_pos > pos || (shape.window > 0 && key_pos <= pos - shape.window)) continue;
      if (is_dead(kv, row)) continue;
      // Scores are small: no maximum needed.
      total += weights[static_cast<size_t>(row)] = std::exp(score(i, h, row));
    }
    for (double& weight : weights) weight /= total;
    return weights;
  }
  std::vector<double> attend_one(int i, int h) const {
    const auto kv = static_cast<size_t>(h / (shape.n_heads / shape.n_kv_heads));
    const std::vector<double> weights = weights_of(i, h);
    std::vector<double> sums(static_cast<size_t>(shape.value_dim));
    for (int row = 0; row < shape.n_rows; ++row) {
      const float* value = v[kv].values.data() + int64_t{row} * shape.value_dim;
      for (int d = 0; d < shape.value_dim; ++d) {
        sums[static_cast<size_t>(d)] += weights[static_cast<size_t>(row)] * double{value[d]};
      }
    }
    return sums;
  }
};

// f32 sums of up to a few thousand terms; outputs are averages, so the largest is well above the
// typical error.
inline constexpr double kBound = 1e-5;
// Queries, rows and weights rounded to 8 bits, 2^-9 relative each: a score of size s is off by
// about 2^-8.5 s at worst, and so is its weight; scores here are at most about 5, outputs are
// averages. Where pages are read code by code, queries, weights and tables of levels are rounded to
// 1 / 127 of the largest of a row or group: at most as much again.
inline constexpr double kRoundedBound = 0.04;

class Attend : public ::testing::TestWithParam<std::string> {
 protected:
  // In both precisions, which differ where there are many queries.
  void check(Case c, const std::string& what) {
    const Problem problem(c);
    const std::vector<double> reference = problem.reference();
    EXPECT_LT(relative_error(problem.run(*backend_), reference), kBound) << what;
    c.precision = Precision::fast;
    const Problem rounded(c);
    EXPECT_LT(relative_error(rounded.run(*backend_), reference), kRoundedBound) << what << ", fast";
  }
  std::unique_ptr<Backend> backend_ = make_cpu_backend(2, GetParam());
};

}  // namespace kve::test
