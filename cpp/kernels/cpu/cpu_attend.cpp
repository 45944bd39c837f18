// How attention is split into chunks. Many queries: blocks of queries, each against the whole
// cache. Few queries (decode): parts of kPartRows cache rows, merged in order. Shapes alone decide.
#include <algorithm>

#include "kernels/cpu/cpu_backend.h"

namespace kve {
namespace {

constexpr int kFewQueries = 8;
constexpr int32_t kPartRows = 256;
static_assert(kPartRows % kAttendTile == 0);

SideArgs side_args(const SideView& side) {
  return {
      .codec = &codec(side.codec.id),
      .group = side.codec.group,
      .width = side.width,
      .pages = side.pages.data(),
      .n_pages = static_cast<int32_t>(side.pages.size()),
      .tail = side.tail,
  };
}

}  // namespace

int64_t CpuBackend::plan(const AttendParams& params, const AttendTask& task, int64_t partials) {
  const int32_t group = params.n_heads / params.n_kv_heads;
  const int32_t group_step = std::min(group, kMaxAttendVectors);
  const int32_t query_step = std::max(1, kMaxAttendVectors / group_step);
  const auto n_queries = static_cast<int32_t>(task.q.rows);
  const bool few = n_queries <= kFewQueries;
  const int64_t value_stride = kernels_.attend_value_stride(params.value_dim);
  // The last queries see most, so their blocks come first.
  for (int32_t block = (n_queries - 1) / query_step; block >= 0; --block) {
    const int32_t query = block * query_step;
    const int32_t queries = std::min(n_queries - query, query_step);
    for (int32_t head = 0; head < params.n_kv_heads; ++head) {
      const HeadView& view = task.heads[static_cast<size_t>(head)];
      for (int32_t g = 0; g < group; g += group_step) {
        const int32_t groups = std::min(group - g, group_step);
        const int32_t last_row = task.first_pos + query + queries - 1 - view.first_pos;
        const int32_t end = std::clamp(last_row + 1, 0, view.n_rows);
        int32_t first = 0;
        if (params.window > 0) {
          const int32_t oldest = task.first_pos + query - params.window + 1 - view.first_pos;
          first = std::clamp(oldest, 0, end) / kAttendTile * kAttendTile;
        }
        AttendJob job = {&task, head, query, queries, g, groups, first, end, -1};
        if (!few || end - first <= kPartRows) {
          attend_jobs_.push_back(job);
          continue;
        }
        const auto first_job = static_cast<int64_t>(attend_jobs_.size());
        for (int32_t row = first; row < end; row += kPartRows) {
          job.first_row = row;
          job.end_row = std::min(end, row + kPartRows);
          job.partial = partials;
          partials += queries * groups * (value_stride + 2);
          attend_jobs_.push_back(job);
        }
        merge_jobs_.push_back({first_job, static_cast<int64_t>(attend_jobs_.size()) - first_job});
      }
    }
  }
  return partials;
}

void CpuBackend::run(const AttendJob& job, const AttendParams& params, std::byte* scratch) {
  const HeadView& view = job.task->heads[static_cast<size_t>(job.kv_head)];
  const int64_t first_head =
      int64_t{job.kv_head} * (params.n_heads / params.n_kv_heads) + job.first_group;
  const bool whole = job.partial < 0;
  kernels_.attend({
      .k = side_args(view.k),
      .v = side_args(view.v),
      .first_row = job.first_row,
      .end_row = job.end_row,
      .first_pos = view.first_pos,
      .q = job.task->q.row(job.first_query) + first_head * params.key_dim,
      .q_stride = job.task->q.stride,
      .n_tokens = job.n_queries,
      .n_group = job.n_group,
      .query_pos = job.task->first_pos + job.first_query,
      .scale = params.scale,
      .softcap = params.softcap,
      .window = params.window,
      .alibi = params.alibi == nullptr ? nullptr : params.alibi + first_head,
      .out = whole ? job.task->out.row(job.first_query) + first_head * params.value_dim : nullptr,
      .out_stride = job.task->out.stride,
      .partial = whole ? nullptr : partials_.get<float>(0) + job.partial,
      .scratch = scratch,
  });
}

void CpuBackend::merge(const MergeJob& merged, const AttendParams& params) {
  const AttendJob& job = attend_jobs_[static_cast<size_t>(merged.first_job)];
  const int64_t first_head =
      int64_t{job.kv_head} * (params.n_heads / params.n_kv_heads) + job.first_group;
  const int n_vectors = job.n_queries * job.n_group;
  const int64_t part_stride =
      int64_t{n_vectors} * (kernels_.attend_value_stride(params.value_dim) + 2);
  kernels_.attend_merge({
      .partial = partials_.get<float>(0) + job.partial,
      .part_stride = part_stride,
      .n_parts = static_cast<int32_t>(merged.n_jobs),
      .n_tokens = job.n_queries,
      .n_group = job.n_group,
      .value_dim = params.value_dim,
      .out = job.task->out.row(job.first_query) + first_head * params.value_dim,
      .out_stride = job.task->out.stride,
  });
}

void CpuBackend::attend(const AttendParams& params, std::span<const AttendTask> tasks) {
  attend_jobs_.clear();
  merge_jobs_.clear();
  int64_t partials = 0;
  for (const AttendTask& task : tasks) partials = plan(params, task, partials);
  partials_.get<float>(static_cast<size_t>(partials));
  reserve_thread_scratch(kernels_.attend_scratch(params.key_dim, params.value_dim));
  pool_.parallel(static_cast<int64_t>(attend_jobs_.size()), [&](int64_t i, int thread) {
    run(attend_jobs_[static_cast<size_t>(i)], params, thread_scratch(thread));
  });
  for (const MergeJob& job : merge_jobs_) merge(job, params);
}

}  // namespace kve
