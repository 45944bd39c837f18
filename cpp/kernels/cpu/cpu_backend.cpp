#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>

#include "base/error.h"
#include "kernels/cpu/dispatch.h"

namespace kve {
namespace {

// Below this many values an element-wise operation is faster than waking another thread.
constexpr int64_t kSerialValues = 16384;

}  // namespace

CpuBackend::CpuBackend(int n_threads, const Kernels& kernels)
    : kernels_(kernels),
      name_(std::string("cpu-") + kernels.name),
      pool_(n_threads),
      thread_scratch_(static_cast<size_t>(n_threads)) {}

void CpuBackend::reserve_thread_scratch(size_t bytes) {
  for (Scratch& scratch : thread_scratch_) scratch.get<std::byte>(bytes);
}

template <class Body>
void CpuBackend::for_rows(int64_t rows, int64_t cols, const Body& body) {
  if (rows * cols <= kSerialValues) {
    for (int64_t r = 0; r < rows; ++r) body(r);
    return;
  }
  const int64_t chunk = std::max<int64_t>(1, kSerialValues / 4 / std::max<int64_t>(cols, 1));
  pool_.parallel((rows + chunk - 1) / chunk, [&](int64_t c) {
    for (int64_t r = c * chunk; r < std::min(rows, (c + 1) * chunk); ++r) body(r);
  });
}

void CpuBackend::embed(const Weight& table, std::span<const Token> tokens, float scale, Mat out) {
  const WeightFormat& decoder = format(table.type);
  for_rows(out.rows, out.cols, [&](int64_t r) {
    const auto row = static_cast<size_t>(tokens[static_cast<size_t>(r)]);
    decoder.decode(table.data + row * table.row_bytes, out.row(r), out.cols);
    if (scale != 1.0f) kernels_.scale(out.row(r), scale, out.cols);
  });
}

void CpuBackend::rms_norm(ConstMat x, const float* weight, float eps, Mat out) {
  for_rows(x.rows, x.cols,
           [&](int64_t r) { kernels_.rms_norm(x.row(r), weight, eps, x.cols, out.row(r)); });
}

void CpuBackend::rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin) {
  for_rows(x.rows, x.cols, [&](int64_t r) {
    kernels_.rope(x.row(r), x.cols / head_dim, head_dim, cos.cols,
                  layout == RopeLayout::interleaved, cos.row(r), sin.row(r));
  });
}

void CpuBackend::gated(Activation activation, Mat gate, ConstMat up) {
  for_rows(gate.rows, gate.cols, [&](int64_t r) {
    kernels_.gated(static_cast<int>(activation), gate.row(r), up.row(r), gate.cols);
  });
}

void CpuBackend::add(Mat x, ConstMat y) {
  for_rows(x.rows, x.cols, [&](int64_t r) { kernels_.add(x.row(r), y.row(r), x.cols); });
}

void CpuBackend::softcap(float cap, Mat x) {
  for_rows(x.rows, x.cols, [&](int64_t r) { kernels_.softcap(cap, x.row(r), x.cols); });
}

int64_t CpuBackend::seal(std::span<const SealJob> jobs) {
  size_t scratch = 0;
  for (const SealJob& job : jobs) {
    if (job.f32 != nullptr) continue;
    const size_t values = static_cast<size_t>(job.n_rows) * static_cast<size_t>(job.width);
    scratch = std::max(scratch, values * sizeof(float));
  }
  reserve_thread_scratch(scratch);
  std::atomic<int64_t> failed{INT64_MAX};
  pool_.parallel(static_cast<int64_t>(jobs.size()), [&](int64_t i, int thread) {
    const SealJob& job = jobs[static_cast<size_t>(i)];
    const float* rows = job.f32;
    int64_t stride = job.stride;
    if (rows == nullptr) {
      float* decoded = reinterpret_cast<float*>(thread_scratch(thread));
      for (int64_t r = 0; r < job.n_rows; ++r) {
        kernels_.half_to_f32(job.f16 + r * job.stride, decoded + r * job.width, job.width);
      }
      rows = decoded;
      stride = job.width;
    }
    if (!codec(job.codec.id)
             .encode(rows, stride, job.page, job.first_row, job.n_rows, job.width,
                     job.codec.group)) {
      int64_t first = failed.load();
      while (i < first && !failed.compare_exchange_weak(first, i)) {
      }
    }
  });
  return failed == INT64_MAX ? -1 : failed.load();
}

std::unique_ptr<Backend> make_cpu_backend(int n_threads, std::string_view isa) {
  return std::make_unique<CpuBackend>(n_threads, choose_kernels(isa));
}

}  // namespace kve
