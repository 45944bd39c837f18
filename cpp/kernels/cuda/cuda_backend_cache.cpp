// What the backend does with caches: attention, and sealing.
#include <algorithm>

#include "kernels/cuda/cuda_backend.h"

namespace kve::cuda {
namespace {

constexpr size_t kJobsTogether = 4096;

// Why the kernels cannot read the pages of a side: a sentence; empty where they can.
std::string side_refusal(const SideView& side) {
  if (side.bases != nullptr)
    return "cuda: expected rows as they are, found coefficients in a basis";
  if (!side.older.empty()) return "cuda: expected pages of one format, found several";
  return format_refusal(side.format, side.first_channel, side.n_channels);
}

int32_t rows_in_pages(const SideView& side) {
  if (side.pages.empty()) return 0;
  return static_cast<int32_t>(side.pages.size() - 1) * kPageTokens + side.pages.back().rows;
}

// Of `rows` rows of a head among those of others.
size_t values_between(int32_t rows, const SideView& side) {
  return rows == 0 ? 0 : static_cast<size_t>(rows - 1) * side.row_stride + side.width;
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

int32_t row_of(const HeadView& head, int32_t position) {
  if (head.positions == nullptr) return position - head.first_pos;
  const int32_t* end = head.positions + head.n_rows;
  return static_cast<int32_t>(std::lower_bound(head.positions, end, position) - head.positions);
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
  if (!attend_refusal(params).empty()) return false;
  return std::ranges::all_of(task.heads, [](const HeadView& head) {
    const auto fits = [](const SideView& side) {
      return (side.pages.empty() || side_refusal(side).empty()) && side.row_stride % 4 == 0;
    };
    return fits(head.k) && fits(head.v);
  });
}

const std::byte* const* CudaBackend::find_pages(std::span<const PageView> pages) {
  if (pages.empty()) return nullptr;
  // The pages of a side all lie in the same memory.
  if (memory_.find(pages[0].data).bytes > 0) return tables_.find(pages);
  pages_.clear();
  for (const PageView& page : pages) {
    pages_.push_back(operands_.read(page.data, static_cast<size_t>(page.bytes)));
  }
  return operands_.send(std::span<const std::byte* const>(pages_));
}

SideRows CudaBackend::find_rows(const SideView& side) {
  SideRows rows;
  if (!side.pages.empty()) rows.format = side_format(side.format);
  rows.first_channel = side.first_channel;
  rows.pages = find_pages(side.pages);
  rows.page_rows = rows_in_pages(side);
  rows.sinks = operands_.read(side.sinks, values_between(side.sink_rows, side));
  rows.tail = operands_.read(side.tail, values_between(side.tail_rows, side));
  rows.row_stride = side.row_stride;
  return rows;
}

void CudaBackend::attend_on_device(const AttendParams& params, const AttendTask& task) {
  Operands& at = operands_;
  tables_.begin();
  heads_.clear();
  int32_t most_rows = 0;
  for (const HeadView& head : task.heads) {
    HeadRows& rows = heads_.emplace_back();
    rows.k = find_rows(head.k);
    rows.v = find_rows(head.v);
    rows.sink_rows = head.k.sink_rows;
    rows.n_rows = head.n_rows;
    rows.first_row = row_of(head, task.first_pos);
    rows.dead = at.read(head.dead, static_cast<size_t>(head.n_rows + 63) / 64);
    most_rows = std::max(most_rows, head.n_rows);
  }
  AttendJob job;
  job.q = at.read(task.q);
  job.heads = at.send(std::span<const HeadRows>(heads_));
  job.most_rows = most_rows;
  job.out = at.write(task.out);
  job.log_sums = at.write(Mat(task.log_sums, task.q.rows, params.n_heads)).data;
  cuda::attend(params, job, at.scratch(attend_scratch(params, task.q.rows, most_rows)));
}

void CudaBackend::attend(const AttendParams& params, std::span<const AttendTask> tasks) {
  bool was_on_host = false;
  for (const AttendTask& task : tasks) {
    if (can_attend(params, task)) {
      on_device();
      attend_on_device(params, task);
      operands_.finish();
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
  for (const MassTask& task : tasks) {
    fetch(task.q);
    for (const HeadView& head : task.heads) fetch_rows(head.k);
  }
  on_host().attention_mass(params, what, tasks);
}

bool CudaBackend::can_seal(const SealJob& job) const {
  return job.basis == nullptr && job.coded == nullptr && job.coefficients.width == 0 &&
         encodes(job.format) && memory_.find(job.page).bytes > 0;
}

int64_t CudaBackend::seal_on_device(std::span<const SealJob> jobs,
                                    std::span<const int64_t> chosen) {
  Operands& at = on_device();
  encode_jobs_.clear();
  for (const int64_t number : chosen) {
    const SealJob& job = jobs[static_cast<size_t>(number)];
    EncodeJob& to = encode_jobs_.emplace_back();
    to.format = job.format;
    to.stride = job.stride;
    to.n_rows = job.n_rows;
    to.first_row = job.first_row;
    to.page = memory_.find(job.page).at(job.page);
    const size_t n = rows_to_seal(job);
    if (job.f32 != nullptr) {
      to.f32 = at.read(job.f32, n);
    } else {
      to.f16 = at.read(job.f16, n);
    }
    to.work = at.scratch(encode_work_bytes(to));
  }
  auto* failed = at.scratch<int32_t>(chosen.size());
  device_.zero(failed, chosen.size() * sizeof(int32_t));
  encode(at.send(std::span<const EncodeJob>(encode_jobs_)), static_cast<int>(chosen.size()),
         failed);
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
