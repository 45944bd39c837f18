#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <functional>

#include "base/error.h"
#include "kernels/cpu/dispatch.h"

namespace kve {
namespace {

// Below this many values an element-wise operation is faster than waking another thread.
constexpr int64_t kSerialValues = 16384;
// The same of sealing: the rows of a token or two.
constexpr int64_t kSerialSealValues = 4096;

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
  in_stretches((rows + chunk - 1) / chunk, [&](int64_t c, int /*thread*/) {
    for (int64_t r = c * chunk; r < std::min(rows, (c + 1) * chunk); ++r) body(r);
  });
}

void CpuBackend::embed(const Weight& table, std::span<const Token> tokens, float scale, Mat out) {
  // A pass begins.
  n_reads_ = 0;
  for (int thread = 0; thread < pool_.size(); ++thread) pool_.ask_ahead(thread, {});
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
  if (up.data == nullptr) {
    ones_.resize(std::max(ones_.size(), static_cast<size_t>(gate.cols)), 1.0f);
    up = ConstMat(ones_.data(), gate.rows, gate.cols, 0);
  }
  for_rows(gate.rows, gate.cols, [&](int64_t r) {
    kernels_.gated(static_cast<int>(activation), gate.row(r), up.row(r), gate.cols);
  });
}

void CpuBackend::add(Mat x, ConstMat y) {
  for_rows(x.rows, x.cols, [&](int64_t r) { kernels_.add(x.row(r), y.row(r), x.cols); });
}

void CpuBackend::add_rms_norm(Mat x, ConstMat y, const float* weight, float eps, Mat out) {
  for_rows(x.rows, x.cols, [&](int64_t r) {
    kernels_.add(x.row(r), y.row(r), x.cols);
    kernels_.rms_norm(x.row(r), weight, eps, x.cols, out.row(r));
  });
}

void CpuBackend::softcap(float cap, Mat x) {
  for_rows(x.rows, x.cols, [&](int64_t r) { kernels_.softcap(cap, x.row(r), x.cols); });
}

void CpuBackend::clamp(float limit, Mat x) {
  for_rows(x.rows, x.cols, [&](int64_t r) {
    for (float& value : x.row_span(r)) value = std::clamp(value, -limit, limit);
  });
}

namespace {

// The position of the first row of a job's page.
int64_t first_of_page(const SealJob& job) {
  return job.positions != nullptr ? job.positions[0] : int64_t{job.position} - job.first_row;
}

// Whether rows are turned back by angles that are not at equal distances in the table.
bool turns_row_by_row(const SealJob& job) {
  return job.positions != nullptr && job.basis != nullptr && job.basis->anchor == 1;
}

// Scratch memory of one seal job.
struct SealWork {
  float* rows;          // [n_rows, width]
  float* coefficients;  // [n_rows, format.width]
  float* sines;         // [n_pairs], of turning back joined heads
  float* angles;        // [n_rows] rows of the rotation table, where positions have gaps
  float* rest;          // [n_rows, width], of rows that are a sum
  std::byte* project;
  std::byte* encode;
  size_t size;

  SealWork(const SealJob& job, size_t project_bytes, std::byte* data) {
    size = 0;
    const auto take = [&](size_t bytes) {
      std::byte* at = data + size;
      size += (bytes + 63) / 64 * 64;
      return at;
    };
    const auto n = static_cast<size_t>(job.n_rows);
    const bool copies = job.coded == nullptr && (job.f32 == nullptr || job.basis != nullptr);
    const bool projects = job.coded != nullptr || job.basis != nullptr;
    rows = reinterpret_cast<float*>(
        take(copies ? n * static_cast<size_t>(job.width) * sizeof(float) : 0));
    coefficients = reinterpret_cast<float*>(
        take(projects ? n * static_cast<size_t>(job.format.width) * sizeof(float) : 0));
    sines = reinterpret_cast<float*>(
        take(job.latent_heads > 0 ? static_cast<size_t>(job.basis->n_pairs) * sizeof(float) : 0));
    angles = reinterpret_cast<float*>(
        take(turns_row_by_row(job) ? n * 2 * static_cast<size_t>(job.basis->n_pairs) * sizeof(float)
                                   : 0));
    const bool sums = job.coefficients.width > 0;
    rest = reinterpret_cast<float*>(
        take(sums ? n * static_cast<size_t>(job.width) * sizeof(float) : 0));
    project = take(project_bytes);
    encode = take(
        std::max(encode_scratch(job.format), sums ? encode_scratch(job.coefficients) : size_t{0}));
  }
};

// Rows [n_rows, width] as a sum of codes and of coefficients in a basis, one after the other.
bool seal_sum(const Kernels& kernels, const SealJob& job, const SealWork& work) {
  KVE_ASSERT(job.first_row == 0 && job.basis->anchor == 0);
  const int n = job.n_rows;
  const int width = job.width;
  const int rank = job.coefficients.width;
  std::byte* behind = job.page + end_of_page(job.format);
  const auto n_values = static_cast<size_t>(n) * static_cast<size_t>(width);
  const auto code = [&] {
    return kernels.encode_rows(job.format, work.rows, width, job.page, 0, n, work.encode);
  };
  const auto project = [&] {
    kernels.project(*job.basis, n, width, work.rest, width, nullptr, 0, work.coefficients,
                    work.project);
    return kernels.encode_rows(job.coefficients, work.coefficients, rank, behind, 0, n,
                               work.encode);
  };
  if (job.codes_first) {
    if (!code()) return false;
    kernels.decode_rows(job.format, job.page, 0, n, 0, width, work.rest, width);
    std::transform(work.rows, work.rows + n_values, work.rest, work.rest, std::minus<>{});
    return project();
  }
  std::copy_n(work.rows, n_values, work.rest);
  if (!project()) return false;
  kernels.decode_rows(job.coefficients, behind, 0, n, 0, rank, work.coefficients, rank);
  std::transform(work.coefficients,
                 work.coefficients + static_cast<size_t>(n) * static_cast<size_t>(rank),
                 work.coefficients, std::negate<>{});
  kernels.lift_values({job.basis, work.coefficients, rank, n, work.rows, width});
  return code();
}

}  // namespace

// Turns back the heads of joined rows; `angles` as in Kernels::project.
void CpuBackend::turn_back(const SealJob& job, const float* angles, int64_t angle_stride,
                           float* rows, float* sines) const {
  const BasisView& basis = *job.basis;
  for (int64_t r = 0; r < job.n_rows; ++r) {
    const float* turn = angles + r * angle_stride;
    std::transform(turn + basis.n_pairs, turn + 2 * basis.n_pairs, sines, std::negate<>{});
    kernels_.rope(rows + r * job.width, job.latent_heads, job.width / job.latent_heads,
                  basis.n_pairs, basis.interleaved, turn, sines);
  }
}

// The angles that a job turns rows back by. Pages with gaps are anchored where a page without them
// would begin.
const RotationTable& CpuBackend::angles_for(const SealJob& job) {
  if (job.positions != nullptr) {
    return rotations_.get(*job.basis, job.page_offset,
                          job.positions[job.first_row + job.n_rows - 1]);
  }
  return rotations_.get(*job.basis, first_of_page(job), int64_t{job.position} + job.n_rows);
}

bool CpuBackend::seal(const SealJob& job, std::byte* scratch) {
  const size_t project_bytes = job.basis != nullptr ? kernels_.project_scratch(job.width) : 0;
  const SealWork work(job, project_bytes, scratch);
  if (job.coded != nullptr) {
    kernels_.decode_rows(job.coded_format, job.coded, 0, job.n_rows, 0, job.format.width,
                         work.coefficients, job.format.width);
    return kernels_.encode_rows(job.format, work.coefficients, job.format.width, job.page,
                                job.first_row, job.n_rows, work.encode);
  }
  const float* rows = job.f32;
  int64_t stride = job.stride;
  if (rows == nullptr || job.basis != nullptr) {
    for (int64_t r = 0; r < job.n_rows; ++r) {
      float* to = work.rows + r * job.width;
      if (job.f32 != nullptr) {
        std::copy_n(job.f32 + r * job.stride, job.width, to);
      } else {
        kernels_.half_to_f32(job.f16 + r * job.stride, to, job.width);
      }
    }
    rows = work.rows;
    stride = job.width;
  }
  if (job.coefficients.width > 0) return seal_sum(kernels_, job, work);
  if (job.basis != nullptr) {
    const BasisView& basis = *job.basis;
    const float* angles = nullptr;
    int64_t angle_stride = 0;
    if (basis.anchor > 0) {
      const RotationTable& table = angles_for(job);
      angle_stride = basis.anchor == 1 ? table.row_floats() : 0;
      angles = table.row_of(basis.anchor == 1 ? job.position : first_of_page(job));
      if (turns_row_by_row(job)) {
        for (int64_t r = 0; r < job.n_rows; ++r) {
          std::copy_n(table.row_of(job.positions[job.first_row + r]), angle_stride,
                      work.angles + r * angle_stride);
        }
        angles = work.angles;
      }
    }
    if (angles != nullptr && job.latent_heads > 0) {
      turn_back(job, angles, angle_stride, work.rows, work.sines);
      angles = nullptr;
    }
    kernels_.project(basis, job.n_rows, job.width, work.rows, job.width, angles, angle_stride,
                     work.coefficients, work.project);
    rows = work.coefficients;
    stride = job.format.width;
  }
  return kernels_.encode_rows(job.format, rows, stride, job.page, job.first_row, job.n_rows,
                              work.encode);
}

int64_t CpuBackend::seal(std::span<const SealJob> jobs) {
  size_t scratch = 0;
  int64_t n_values = 0;
  for (const SealJob& job : jobs) {
    const size_t project = job.basis != nullptr ? kernels_.project_scratch(job.width) : 0;
    scratch = std::max(scratch, SealWork(job, project, nullptr).size);
    n_values += int64_t{job.n_rows} * job.width;
    // Angles are made before the threads run, which only read them.
    if (job.basis != nullptr && job.basis->anchor > 0) angles_for(job);
  }
  reserve_thread_scratch(scratch);
  std::atomic<int64_t> failed{INT64_MAX};
  const auto run = [&](int64_t i, int thread) {
    if (seal(jobs[static_cast<size_t>(i)], thread_scratch(thread))) return;
    int64_t first = failed.load();
    while (i < first && !failed.compare_exchange_weak(first, i)) {
    }
  };
  const auto n_jobs = static_cast<int64_t>(jobs.size());
  if (n_values > kSerialSealValues) {
    pool_.parallel(n_jobs, run);
  } else {
    for (int64_t i = 0; i < n_jobs; ++i) run(i, 0);
  }
  return failed == INT64_MAX ? -1 : failed.load();
}

std::unique_ptr<Backend> make_cpu_backend(int n_threads, std::string_view isa) {
  return std::make_unique<CpuBackend>(n_threads, choose_kernels(isa));
}

}  // namespace kve
