// What the backend does with caches: attention, and sealing.
#include <algorithm>

#include "kernels/cuda/cuda_backend.h"

namespace kve::cuda {
namespace {

constexpr size_t kJobsTogether = 1024;

bool reads_on_device(const SideView& side) {
  return (side.pages.empty() || side_refusal(side).empty()) && side.row_stride % 4 == 0;
}

// Values from the first of a job's rows to the last.
size_t rows_to_seal(const SealJob& job) {
  return static_cast<size_t>((job.n_rows - 1) * job.stride + job.width);
}

// Of the page that a job writes to.
size_t bytes_to_seal(const SealJob& job) {
  if (job.coefficients.width == 0) return page_bytes(job.format);
  return end_of_page(job.format) + page_bytes(job.coefficients);
}

// The position that the rows of a page are turned back to.
int64_t first_of_page(const SealJob& job) {
  return job.positions != nullptr ? job.positions[0] : int64_t{job.position} - job.first_row;
}

}  // namespace

ReadPath CudaBackend::read_path(const SideView& side, Precision /*precision*/) const {
  const bool fits = side.width % 16 == 0 && side.width <= 256;
  return fits && side_refusal(side).empty() ? ReadPath::fused : ReadPath::host;
}

void CudaBackend::fetch_rows(const SideView& side) {
  for (const PageView& page : side.pages) {
    memory_.fetch(page.data, static_cast<size_t>(page.bytes));
  }
  memory_.fetch(side.sinks, values_between(side.sink_rows, side) * sizeof(uint16_t));
  memory_.fetch(side.tail, values_between(side.tail_rows, side) * sizeof(uint16_t));
}

bool CudaBackend::can_attend(const AttendParams& params, const AttendTask& task) const {
  if (!attend_refusal(params).empty() || task.q.stride % 4 != 0) return false;
  if (!std::ranges::all_of(task.heads, [](const HeadView& head) {
        return reads_on_device(head.k) && reads_on_device(head.v);
      })) {
    return false;
  }
  const ReadNeeds needs = needs_of(task.heads);
  return attend_shared(params, needs, task.q.rows) <= device_.block_memory();
}

void CudaBackend::attend_on_device(const AttendParams& params, const AttendTask& task) {
  Operands& at = operands_;
  const TaskHeads heads = heads_.find(task.heads, task.first_pos, params.alibi != nullptr);
  AttendJob job;
  job.q = at.read(task.q);
  job.heads = heads.rows;
  job.most_rows = heads.most_rows;
  job.needs = needs_of(task.heads);
  job.alibi = at.read(params.alibi, static_cast<size_t>(params.n_heads));
  job.out = at.write(task.out);
  job.log_sums = at.write(Mat(task.log_sums, task.q.rows, params.n_heads)).data;
  cuda::attend(params, job, at.scratch(attend_scratch(params, task.q.rows, heads.most_rows)));
}

void CudaBackend::attend(const AttendParams& params, std::span<const AttendTask> tasks) {
  bool was_on_host = false;
  for (const AttendTask& task : tasks) {
    if (can_attend(params, task)) {
      on_device();
      attend_on_device(params, task);
      operands_.finish();
      if (task.mass.empty()) continue;
      const MassTask mass{task.q, task.heads, task.first_pos, task.log_sums, task.mass};
      attention_mass(params, MassOf::sum, {&mass, 1});
      was_on_host = was_on_host || was_on_host_;
    } else {
      fetch(task.q);
      for (const HeadView& head : task.heads) {
        fetch_rows(head.k);
        fetch_rows(head.v);
      }
      on_host().attend(params, {&task, 1});
      send(task.out);
      was_on_host = true;
    }
  }
  was_on_host_ = was_on_host;
}

void CudaBackend::attention_mass(const AttendParams& params, MassOf what,
                                 std::span<const MassTask> tasks) {
  bool was_on_host = false;
  for (const MassTask& task : tasks) {
    if (can_weigh(params, task)) {
      on_device();
      weigh_on_device(params, what, task);
    } else {
      fetch(task.q);
      for (const HeadView& head : task.heads) fetch_rows(head.k);
      on_host().attention_mass(params, what, {&task, 1});
      was_on_host = true;
    }
  }
  was_on_host_ = was_on_host;
}

bool CudaBackend::can_weigh(const AttendParams& params, const MassTask& task) const {
  if (!attend_refusal(params).empty() || task.q.stride % 4 != 0) return false;
  const bool fit =
      std::ranges::all_of(task.heads, [](const HeadView& head) { return reads_on_device(head.k); });
  return fit && mass_shared(params, needs_of(task.heads)) <= device_.block_memory();
}

// The mass lies in the host's memory, where selectors are.
void CudaBackend::weigh_on_device(const AttendParams& params, MassOf what, const MassTask& task) {
  Operands& at = operands_;
  keys_.assign(task.heads.begin(), task.heads.end());
  for (HeadView& head : keys_) head.v = {};
  const TaskHeads heads = heads_.find(keys_, task.first_pos, params.alibi != nullptr);
  const auto most_rows = static_cast<size_t>(heads.most_rows);
  const size_t n = most_rows * task.heads.size();
  mass_.assign(n, 0);
  for (size_t h = 0; h < task.heads.size(); ++h) {
    std::copy_n(task.mass[h], task.heads[h].n_rows, mass_.data() + h * most_rows);
  }
  auto* mass = at.scratch<float>(n);
  device_.upload(mass, mass_.data(), n * sizeof(float));
  MassJob job;
  job.what = what;
  job.q = at.read(task.q);
  job.heads = heads.rows;
  job.most_rows = heads.most_rows;
  job.needs = needs_of(keys_);
  job.alibi = at.read(params.alibi, static_cast<size_t>(params.n_heads));
  job.log_sums = at.read(task.log_sums, static_cast<size_t>(task.q.rows * params.n_heads));
  job.mass = mass;
  cuda::attention_mass(params, job);
  device_.download(mass_.data(), mass, n * sizeof(float));
  for (size_t h = 0; h < task.heads.size(); ++h) {
    std::copy_n(mass_.data() + h * most_rows, task.heads[h].n_rows, task.mass[h]);
  }
  operands_.finish();
}

bool CudaBackend::can_seal(const SealJob& job) const {
  if (job.coded != nullptr || job.coefficients.width > 0 || job.latent_heads > 0) return false;
  if (!encodes(job.format) || memory_.find(job.page).bytes == 0) return false;
  if (job.basis == nullptr) return true;
  const BasisView& basis = *job.basis;
  if (project_shared(basis.block) > device_.block_memory()) return false;
  return basis.anchor == 0 || (basis.anchor == kPageTokens && job.width == basis.dim);
}

AnchorAngles CudaBackend::find_angles(const SealJob& job) {
  if (job.positions != nullptr) {
    return rotations_.find(*job.basis, job.page_offset,
                           job.positions[job.first_row + job.n_rows - 1]);
  }
  return rotations_.find(*job.basis, first_of_page(job), int64_t{job.position} + job.n_rows);
}

void CudaBackend::add_projection(const SealJob& job, EncodeJob* to) {
  Operands& at = operands_;
  const BasisView& basis = *job.basis;
  const auto rows = static_cast<size_t>(basis.block);
  const auto columns = static_cast<size_t>(basis.block_width);
  ProjectJob& project = project_jobs_.emplace_back();
  project.f32 = to->f32;
  project.f16 = to->f16;
  project.stride = job.stride;
  project.n_rows = job.n_rows;
  project.width = job.width;
  project.block = basis.block;
  project.block_width = basis.block_width;
  project.lift = at.read(basis.lift, rows * columns);
  project.lift8 = at.read(basis.lift8, rows * columns);
  project.lift8_scale = at.read(basis.lift8_scale, rows);
  project.row = at.read(basis.row, rows);
  project.column = at.read(basis.column, columns);
  project.twice = basis.projected_twice;
  if (basis.anchor > 0) {
    const AnchorAngles angles = find_angles(job);
    project.angles = angles.rows + int64_t{angles.row_of(first_of_page(job))} * 2 * basis.n_pairs;
    project.n_pairs = basis.n_pairs;
    project.interleaved = basis.interleaved;
  }
  const auto n = static_cast<size_t>(job.n_rows) * static_cast<size_t>(job.format.width);
  project.coefficients = at.scratch<float>(n);
  to->f32 = project.coefficients;
  to->f16 = nullptr;
  to->stride = job.format.width;
}

int64_t CudaBackend::seal_on_device(std::span<const SealJob> jobs,
                                    std::span<const int64_t> chosen) {
  Operands& at = on_device();
  encode_jobs_.clear();
  project_jobs_.clear();
  int32_t most_rows = 0;
  int32_t most_block = 0;
  // First what moves tables of angles.
  for (const int64_t number : chosen) {
    const SealJob& job = jobs[static_cast<size_t>(number)];
    if (job.basis == nullptr) continue;
    if (job.basis->anchor > 0) find_angles(job);
    most_rows = std::max(most_rows, job.n_rows);
    most_block = std::max(most_block, job.basis->block);
  }
  for (const int64_t number : chosen) {
    const SealJob& job = jobs[static_cast<size_t>(number)];
    EncodeJob& to = encode_jobs_.emplace_back();
    to.format = job.format;
    to.stride = job.stride;
    to.n_rows = job.n_rows;
    to.first_row = job.first_row;
    to.page = memory_.place_to_write(job.page);
    const size_t n = rows_to_seal(job);
    if (job.f32 != nullptr) {
      to.f32 = at.read(job.f32, n);
    } else {
      to.f16 = at.read(job.f16, n);
    }
    if (job.format.coded.strip_bits != nullptr) {
      const auto strips = static_cast<size_t>(n_strips(job.format.coded));
      to.format.coded.strip_bits = at.read(job.format.coded.strip_bits, strips);
    }
    to.work = at.scratch(encode_work_bytes(to));
    if (job.basis != nullptr) add_projection(job, &to);
  }
  // Within a pass nobody waits, and one mark is enough for all.
  const bool later = device_.in_pass() && flagged_layers_.size() < flags_.size();
  int32_t* failed = flags_.data() + flagged_layers_.size();
  if (later) {
    flagged_layers_.push_back(jobs[static_cast<size_t>(chosen[0])].layer);
  } else {
    failed = at.scratch<int32_t>(chosen.size());
    device_.zero(failed, chosen.size() * sizeof(int32_t));
  }
  project(at.send(std::span<const ProjectJob>(project_jobs_)),
          static_cast<int>(project_jobs_.size()), most_rows, most_block);
  encode(at.send(std::span<const EncodeJob>(encode_jobs_)), static_cast<int>(chosen.size()), later,
         failed);
  if (later) return -1;
  failed_.resize(chosen.size());
  device_.download(failed_.data(), failed, chosen.size() * sizeof(int32_t));
  operands_.finish();
  const auto first = std::ranges::find(failed_, 1);
  return first == failed_.end() ? -1 : chosen[static_cast<size_t>(first - failed_.begin())];
}

int64_t CudaBackend::seal_on_host(std::span<const SealJob> jobs, std::span<const int64_t> chosen) {
  others_.clear();
  for (const int64_t number : chosen) {
    const SealJob& job = others_.emplace_back(jobs[static_cast<size_t>(number)]);
    const size_t n = rows_to_seal(job);
    if (job.f32 != nullptr) memory_.fetch(job.f32, n * sizeof(float));
    if (job.f16 != nullptr) memory_.fetch(job.f16, n * sizeof(uint16_t));
    if (job.coded != nullptr) memory_.fetch(job.coded, page_bytes(job.coded_format));
    memory_.fetch(job.page, bytes_to_seal(job));
  }
  const int64_t failed = on_host().seal(others_);
  for (const SealJob& job : others_) memory_.send(job.page, bytes_to_seal(job));
  return failed < 0 ? -1 : chosen[static_cast<size_t>(failed)];
}

int64_t CudaBackend::seal(std::span<const SealJob> jobs) {
  int64_t failed = INT64_MAX;
  bool was_on_host = false;
  for (const bool on_gpu : {true, false}) {
    chosen_.clear();
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (can_seal(jobs[i]) == on_gpu) chosen_.push_back(static_cast<int64_t>(i));
    }
    const std::span<const int64_t> all = chosen_;
    // Together as far as scratch memory should go.
    for (size_t first = 0; first < all.size(); first += kJobsTogether) {
      const auto some = all.subspan(first, std::min(kJobsTogether, all.size() - first));
      const int64_t found = on_gpu ? seal_on_device(jobs, some) : seal_on_host(jobs, some);
      if (found >= 0) failed = std::min(failed, found);
    }
    was_on_host = was_on_host || (!on_gpu && !all.empty());
  }
  was_on_host_ = was_on_host;
  return failed == INT64_MAX ? -1 : failed;
}

}  // namespace kve::cuda
