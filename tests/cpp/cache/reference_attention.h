// Attention over a KvCache in float64, from the bytes that its views show: what every backend must
// give.
#pragma once

#include <cmath>
#include <vector>

#include "base/half.h"
#include "kernels/backend.h"

namespace kve {

// Of row r of a head.
inline int position_of(const HeadView& head, int r) {
  return head.positions != nullptr ? head.positions[r] : head.first_pos + r;
}
inline bool is_dead(const HeadView& head, int r) {
  return head.dead != nullptr && (head.dead[r / 64] >> (r % 64) & 1) != 0;
}

// Rows of one head and side as attention must see them, [n_rows][width].
class ReferenceRows {
 public:
  ReferenceRows(const SideView& side, const HeadView& head) : side_(side), head_(head) {
    add_floats(side.sinks, side.sink_rows);
    for (const PageView& page : side.pages) add_page(page, rows());
    add_floats(side.tail, side.tail_rows);
  }

  int rows() const { return static_cast<int>(values_.size()); }
  const std::vector<double>& row(int r) const { return values_[static_cast<size_t>(r)]; }

 private:
  void add_floats(const uint16_t* rows, int n) {
    for (int r = 0; r < n; ++r) {
      std::vector<double>& row = values_.emplace_back();
      for (int c = 0; c < side_.width; ++c) {
        row.push_back(half_to_float(rows[int64_t{r} * side_.row_stride + c]));
      }
    }
  }

  // Rows with gaps are turned back to where pages without gaps begin.
  int anchor(int first_row) const {
    const int position = position_of(head_, first_row);
    return head_.positions == nullptr ? position
                                      : position - (position - head_.page_offset) % kPageTokens;
  }

  void add_page(const PageView& page, int first_row) {
    PageFormat format = side_.format_of(page.basis % side_.n_tiers());
    const BasisView* basis = side_.bases == nullptr ? nullptr : side_.bases + page.basis;
    if (basis != nullptr) format.coded.strip_bits = basis->strip_bits;
    const bool sum = side_.coefficients != nullptr;
    const int n = sum ? side_.coefficients->width : side_.n_channels;
    std::vector<float> coefficients(static_cast<size_t>(page.rows * n));
    std::vector<float> codes(static_cast<size_t>(page.rows * side_.n_channels));
    decode_rows(format, page.data, 0, page.rows, side_.first_channel, side_.n_channels,
                codes.data(), side_.n_channels);
    if (sum) {
      decode_rows(*side_.coefficients, page.data + end_of_page(format), 0, page.rows, 0, n,
                  coefficients.data(), n);
    } else {
      coefficients = codes;
    }
    for (int r = 0; r < page.rows; ++r) {
      const float* from = coefficients.data() + r * n;
      if (basis == nullptr) {
        values_.emplace_back(from, from + n);
        continue;
      }
      std::vector<double> row = lift(*basis, matrix_of(*basis), from);
      for (int c = 0; sum && c < side_.width; ++c) {
        row[static_cast<size_t>(c)] += codes[static_cast<size_t>(r * side_.n_channels + c)];
      }
      const int turned = basis->anchor == 1 ? position_of(head_, first_row + r) : anchor(first_row);
      if (basis->anchor > 0) turn(*basis, turned, &row);
      values_.push_back(row);
    }
  }

  // The transposed lift, [block_width][block].
  const std::vector<double>& matrix_of(const BasisView& basis) {
    if (matrix_basis_ == &basis) return matrix_;
    matrix_basis_ = &basis;
    matrix_.clear();
    for (int c = 0; c < basis.block_width; ++c) {
      for (int j = 0; j < basis.block; ++j) {
        const int at = j * basis.block_width + c;
        matrix_.push_back(basis.lift8 == nullptr ? double{half_to_float(basis.lift[at])}
                                                 : double{basis.lift8_scale[j]} * basis.lift8[at]);
      }
    }
    return matrix_;
  }

  static std::vector<double> lift(const BasisView& basis, const std::vector<double>& matrix,
                                  const float* coefficients) {
    std::vector<double> row(static_cast<size_t>(basis.dim));
    for (int b = 0; b < basis.dim / basis.block; ++b) {
      double* to = row.data() + b * basis.block;
      for (int c = 0; c < basis.block_width; ++c) {
        const double* factors = matrix.data() + c * basis.block;
        const double coefficient = coefficients[b * basis.block_width + c];
        for (int j = 0; j < basis.block; ++j) to[j] += coefficient * factors[j];
      }
    }
    return row;
  }

  static void turn(const BasisView& basis, int position, std::vector<double>* row) {
    for (int i = 0; i < basis.n_pairs; ++i) {
      const double angle = position * basis.frequencies[i];
      double& a = (*row)[static_cast<size_t>(basis.interleaved ? 2 * i : i)];
      double& b = (*row)[static_cast<size_t>(basis.interleaved ? 2 * i + 1 : i + basis.n_pairs)];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  }

  const SideView& side_;
  const HeadView& head_;
  const BasisView* matrix_basis_ = nullptr;
  std::vector<double> matrix_;
  std::vector<std::vector<double>> values_;
};

// [n, n_heads * value_dim]; scores must stay below about 700. No softcap, no slopes.
inline std::vector<double> reference_attention(const AttendParams& params, const AttendTask& task) {
  std::vector<double> out(static_cast<size_t>(task.q.rows * params.n_heads * params.value_dim));
  const int group = params.n_heads / params.n_kv_heads;
  for (int kv = 0; kv < params.n_kv_heads; ++kv) {
    const HeadView& view = task.heads[static_cast<size_t>(kv)];
    const ReferenceRows keys(view.k, view);
    const ReferenceRows values(view.v, view);
    for (int64_t t = 0; t < task.q.rows; ++t) {
      const int64_t position = task.first_pos + t;
      for (int h = kv * group; h < (kv + 1) * group; ++h) {
        const float* q = task.q.row(t) + int64_t{h} * params.key_dim;
        double* to = out.data() + (t * params.n_heads + h) * params.value_dim;
        double total = 0;
        for (int r = 0; r < keys.rows() && position_of(view, r) <= position; ++r) {
          if (params.window > 0 && position_of(view, r) <= position - params.window) continue;
          if (is_dead(view, r)) continue;
          double score = 0;
          for (int d = 0; d < params.key_dim; ++d) {
            score += static_cast<double>(q[d]) * keys.row(r)[static_cast<size_t>(d)];
          }
          const double weight = std::exp(static_cast<double>(params.scale) * score);
          total += weight;
          for (int d = 0; d < params.value_dim; ++d) {
            to[d] += weight * values.row(r)[static_cast<size_t>(d)];
          }
        }
        for (int d = 0; d < params.value_dim; ++d) to[d] /= total;
      }
    }
  }
  return out;
}

}  // namespace kve
