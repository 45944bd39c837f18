// A backend that only seals, with the portable definitions of codecs and bases, for tests of the
// cache.
#pragma once

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cache/anchor.h"
#include "cache/basis.h"
#include "formats/cache_codecs.h"
#include "kernels/backend.h"

namespace kve {

class SealOnlyBackend final : public Backend {
 public:
  std::string_view name() const override { return "seal-only"; }
  ThreadPool& pool() override { return pool_; }
  size_t repacked_bytes(const Weight& /*weight*/) const override { return 0; }
  void repack(const Weight& /*weight*/, std::byte* /*memory*/) override {}

  int64_t seal(std::span<const SealJob> jobs) override {
    ++calls;
    if (fail_next) {
      fail_next = false;
      throw DeviceError("seal: the device has failed");
    }
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (!run(jobs[i])) return static_cast<int64_t>(i);
    }
    return -1;
  }

  void embed(const Weight&, std::span<const Token>, float, Mat) override { unused(); }
  void matmul(ConstMat, std::span<const Product>, Precision) override { unused(); }
  void rms_norm(ConstMat, const float*, float, Mat) override { unused(); }
  void rope(Mat, int, RopeLayout, ConstMat, ConstMat) override { unused(); }
  void gated(Activation, Mat, ConstMat) override { unused(); }
  void add(Mat, ConstMat) override { unused(); }
  void softcap(float, Mat) override { unused(); }
  void clamp(float, Mat) override { unused(); }
  void attend(const AttendParams&, std::span<const AttendTask>) override { unused(); }
  void attention_mass(const AttendParams&, MassOf, std::span<const MassTask>) override { unused(); }
  ReadPath read_path(const SideView&, Precision) const override { return ReadPath::rebuilt; }
  void dot_halves(const HalfDots& job) const override {
    for (int64_t v = 0; v < job.n_vectors; ++v) {
      for (int64_t r = 0; r < job.n; ++r) {
        float sum = 0;
        for (int64_t c = 0; c < job.width; ++c) {
          sum +=
              half_to_float(job.rows[r * job.width + c]) * job.vectors[v * job.vector_stride + c];
        }
        job.out[v * job.out_stride + r] = sum;
      }
    }
  }
  int64_t add_gram(const HalfGram& job) const override {
    for (int64_t at = 0; at < job.n * job.width; at += job.block) {
      const uint16_t* piece = job.rows + at / job.width * job.stride + at % job.width;
      for (int64_t i = 0; i < job.block; ++i) {
        for (int64_t j = i; j < job.block; ++j) {
          job.upper[i * job.block + j] +=
              double{half_to_float(piece[i])} * double{half_to_float(piece[j])};
        }
      }
    }
    return job.n * job.width / job.block;
  }

  int calls = 0;
  bool fail_next = false;

 private:
  [[noreturn]] static void unused() { throw Error("the cache must only seal"); }

  bool run(const SealJob& job) {
    if (job.coded != nullptr) {
      coefficients_.resize(static_cast<size_t>(job.n_rows) * static_cast<size_t>(job.format.width));
      scratch_.resize(encode_scratch(job.format));
      decode_rows(job.coded_format, job.coded, 0, job.n_rows, 0, job.format.width,
                  coefficients_.data(), job.format.width);
      return encode_rows(job.format, coefficients_.data(), job.format.width, job.page,
                         job.first_row, job.n_rows, scratch_.data());
    }
    rows_.resize(static_cast<size_t>(job.n_rows) * static_cast<size_t>(job.width));
    const Mat rows(rows_.data(), job.n_rows, job.width);
    for (int r = 0; r < job.n_rows; ++r) {
      for (int i = 0; i < job.width; ++i) {
        rows.row(r)[i] = job.f32 != nullptr ? job.f32[r * job.stride + i]
                                            : half_to_float(job.f16[r * job.stride + i]);
      }
    }
    scratch_.resize(encode_scratch(job.format));
    if (job.basis == nullptr) {
      return encode_rows(job.format, rows.data, rows.stride, job.page, job.first_row, job.n_rows,
                         scratch_.data());
    }
    if (job.coefficients.width > 0) return run_sum(job, rows);
    const Mat coefficients = project(job, rows);
    return encode_rows(job.format, coefficients.data, coefficients.stride, job.page, job.first_row,
                       job.n_rows, scratch_.data());
  }

  // Codes and coefficients, one of what the other leaves.
  bool run_sum(const SealJob& job, Mat rows) {
    std::byte* behind = job.page + end_of_page(job.format);
    scratch_.resize(std::max(encode_scratch(job.format), encode_scratch(job.coefficients)));
    std::vector<float> other(rows_.size());
    std::vector<float> few(static_cast<size_t>(job.n_rows * job.coefficients.width));
    const Mat rest(other.data(), rows.rows, rows.cols);
    const Mat coefficients(few.data(), job.n_rows, job.coefficients.width);
    const auto code = [&] {
      return encode_rows(job.format, rows.data, rows.stride, job.page, 0, job.n_rows,
                         scratch_.data());
    };
    const auto keep = [&](Mat of) {
      project_rows(*job.basis, of, coefficients);
      return encode_rows(job.coefficients, coefficients.data, coefficients.stride, behind, 0,
                         job.n_rows, scratch_.data());
    };
    if (job.codes_first) {
      if (!code()) return false;
      decode_rows(job.format, job.page, 0, job.n_rows, 0, job.width, rest.data, rest.stride);
      for (size_t i = 0; i < other.size(); ++i) other[i] = rows_[i] - other[i];
      return keep(rest);
    }
    if (!keep(rows)) return false;
    decode_rows(job.coefficients, behind, 0, job.n_rows, 0, job.coefficients.width,
                coefficients.data, coefficients.stride);
    lift_rows(*job.basis, coefficients, rest);
    for (size_t i = 0; i < other.size(); ++i) rows_[i] -= other[i];
    return code();
  }

  // Head by head: rows of several heads share a basis, or have one together.
  Mat project(const SealJob& job, Mat rows) {
    const BasisView& basis = *job.basis;
    const int n_heads = job.width / basis.dim;
    coefficients_.resize(static_cast<size_t>(job.n_rows) * static_cast<size_t>(job.format.width));
    const Mat out(coefficients_.data(), job.n_rows, job.format.width);
    for (int head = 0; head < n_heads; ++head) {
      const Mat own = rows.columns(int64_t{head} * basis.dim, basis.dim);
      const int n_turned = std::max(1, job.latent_heads);
      const int dim = basis.dim / n_turned;
      for (int r = 0; r < job.n_rows && basis.anchor > 0; ++r) {
        const int page_start =
            job.positions == nullptr
                ? job.position - job.first_row
                : job.positions[0] - (job.positions[0] - job.page_offset) % kPageTokens;
        const int own_position =
            job.positions == nullptr ? job.position + r : job.positions[job.first_row + r];
        for (int turned = 0; turned < n_turned; ++turned) {
          rotate(own.columns(int64_t{turned} * dim, dim).block(r, 1), basis,
                 basis.anchor == 1 ? own_position : page_start, -1);
        }
      }
      const Mat coefficients = out.columns(int64_t{head} * basis.width, basis.width);
      project_rows(basis, own, coefficients);
      if (job.latent_heads > 0) refine(basis, own, coefficients);
    }
    return out;
  }

  // Adds the coefficients of what was left of the rows.
  void refine(const BasisView& basis, Mat rows, Mat coefficients) {
    std::vector<float> lifted(static_cast<size_t>(rows.rows * rows.cols));
    std::vector<float> more(static_cast<size_t>(coefficients.rows * coefficients.cols));
    lift_rows(basis, coefficients, Mat(lifted.data(), rows.rows, rows.cols));
    for (int64_t r = 0; r < rows.rows; ++r) {
      for (int64_t c = 0; c < rows.cols; ++c) {
        rows.row(r)[c] -= lifted[static_cast<size_t>(r * rows.cols + c)];
      }
    }
    project_rows(basis, rows, Mat(more.data(), coefficients.rows, coefficients.cols));
    for (int64_t r = 0; r < coefficients.rows; ++r) {
      for (int64_t c = 0; c < coefficients.cols; ++c) {
        coefficients.row(r)[c] += more[static_cast<size_t>(r * coefficients.cols + c)];
      }
    }
  }

  ThreadPool pool_{1};
  std::vector<float> rows_;
  std::vector<float> coefficients_;
  std::vector<std::byte> scratch_;
};

}  // namespace kve
