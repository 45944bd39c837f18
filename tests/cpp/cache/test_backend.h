// A backend that only seals, with the codecs' own definitions, for tests of the cache.
#pragma once

#include <vector>

#include "base/error.h"
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
  void attend(const AttendParams&, std::span<const AttendTask>) override { unused(); }

  int calls = 0;
  bool fail_next = false;

 private:
  [[noreturn]] static void unused() { throw Error("the cache must only seal"); }

  bool run(const SealJob& job) {
    const CacheCodec& c = codec(job.codec.id);
    const float* source = job.f32;
    int64_t stride = job.stride;
    if (source == nullptr) {
      rows_.resize(static_cast<size_t>(job.n_rows) * static_cast<size_t>(job.width));
      for (int r = 0; r < job.n_rows; ++r) {
        for (int i = 0; i < job.width; ++i) {
          rows_[static_cast<size_t>(r * job.width + i)] =
              half_to_float(job.f16[r * job.stride + i]);
        }
      }
      source = rows_.data();
      stride = job.width;
    }
    return c.encode(source, stride, job.page, job.first_row, job.n_rows, job.width,
                    job.codec.group);
  }

  ThreadPool pool_{1};
  std::vector<float> rows_;
};

}  // namespace kve
