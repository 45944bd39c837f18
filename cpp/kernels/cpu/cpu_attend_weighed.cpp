// Attention that also gives the weights of rows (AttendTask::mass). Many queries: in one go where
// the kernels can (AttendMethod::weighed_tiles). One query: from the scores that its jobs leave.
// Elsewhere by a second pass over the keys (cpu_attention_mass.cpp).
#include <algorithm>
#include <atomic>

#include "kernels/cpu/attend_block.h"
#include "kernels/cpu/cpu_backend.h"

namespace kve {
namespace {

// Queries of a block. The more, the less memory their sums of weights take; each group of them
// reads all prepared tiles for itself in any case.
constexpr int32_t kWeighedVectors = 96;
constexpr int64_t kStagedTiles = 8;  // of one job that prepares tiles
constexpr int64_t kMassRows = 2048;  // of one job that adds up what queries gave rows
constexpr int64_t kNoSides = -2;     // of side_strips_: the rows of keys and values are plain

// Whether all rows lie as f16 or bf16 in memory.
bool is_plain(const SideView& side) {
  const bool pages =
      side.pages.empty() || (side.format.id == CodecId::f16 || side.format.id == CodecId::bf16);
  return pages && side.bases == nullptr && side.format.id != CodecId::f32;
}

}  // namespace

bool CpuBackend::can_stage(const AttendParams& params, const AttendTask& task) const {
  if (task.mass.empty() || kernels_.stage_tiles == nullptr) return false;
  if (method(params, task) != AttendMethod::rounded_tiles) return false;
  return std::ranges::all_of(task.heads, [](const HeadView& head) {
    return head.dead == nullptr && is_plain(head.k) && is_plain(head.v);
  });
}

void CpuBackend::stage(const AttendParams& params, std::span<const AttendTask> tasks) {
  staged_at_.assign(tasks.size(), -1);
  int64_t bytes = 0;
  for (size_t t = 0; t < tasks.size(); ++t) {
    if (!can_stage(params, tasks[t])) continue;
    staged_at_[t] = bytes;
    int64_t n_tiles = 0;
    for (const HeadView& head : tasks[t].heads) n_tiles += most_tiles(head.n_rows);
    bytes += n_tiles *
             static_cast<int64_t>(kernels_.staged_tile_bytes(params.key_dim, params.value_dim));
  }
  if (bytes == 0) return;
  staged_.get<std::byte>(static_cast<size_t>(bytes));
  reserve_thread_scratch(kernels_.stage_scratch(params.key_dim, params.value_dim));
  for (size_t t = 0; t < tasks.size(); ++t) {
    if (staged_at_[t] >= 0 && !stage(params, tasks[t], staged_at_[t])) staged_at_[t] = -1;
  }
}

bool CpuBackend::stage(const AttendParams& params, const AttendTask& task, int64_t offset) {
  const auto tile_bytes =
      static_cast<int64_t>(kernels_.staged_tile_bytes(params.key_dim, params.value_dim));
  std::atomic<bool> whole{true};
  for (int32_t h = 0; h < params.n_kv_heads; ++h) {
    const HeadView& head = task.heads[static_cast<size_t>(h)];
    // Jobs begin where tiles do.
    const int32_t before = rows_before_in_tile(head.first_pos, head.page_offset, 0);
    const int64_t step = kStagedTiles * kAttendTile;
    pool_.parallel((before + head.n_rows + step - 1) / step, [&](int64_t i, int thread) {
      AttendChunk chunk = chunk_of(params, task, {h, 0, 0, 0, 0}, kNoSides);
      chunk.n_rows = head.n_rows;
      chunk.first_row = static_cast<int32_t>(std::max<int64_t>(0, i * step - before));
      chunk.end_row = static_cast<int32_t>(std::min<int64_t>(head.n_rows, (i + 1) * step - before));
      chunk.tiles = staged_.get<std::byte>(0) + offset;
      chunk.scratch = thread_scratch(thread);
      if (!kernels_.stage_tiles(chunk)) whole = false;
    });
    offset += most_tiles(head.n_rows) * tile_bytes;
  }
  return whole;
}

void CpuBackend::plan_weighed(const AttendParams& params, const AttendTask& task, int64_t tiles) {
  const int32_t group = params.n_heads / params.n_kv_heads;
  const int32_t group_step = std::min(group, kWeighedVectors);
  const int32_t query_step = kWeighedVectors / group_step;
  const auto n_queries = static_cast<int32_t>(task.q.rows);
  const auto tile_bytes =
      static_cast<int64_t>(kernels_.staged_tile_bytes(params.key_dim, params.value_dim));
  const auto first_side = static_cast<int64_t>(side_strips_.size());
  side_strips_.insert(side_strips_.end(), 2 * task.heads.size(), -1);
  int64_t most_rows = 0;
  // The last queries see most, so their blocks come first.
  for (int32_t query = (n_queries - 1) / query_step * query_step; query >= 0; query -= query_step) {
    int64_t offset = tiles;
    for (int32_t h = 0; h < params.n_kv_heads; ++h) {
      const HeadView& head = task.heads[static_cast<size_t>(h)];
      for (int32_t g = 0; g < group; g += group_step) {
        attend_jobs_.push_back({.task = &task,
                                .method = AttendMethod::weighed_tiles,
                                .block = {.kv_head = h,
                                          .first_query = query,
                                          .n_queries = std::min(n_queries - query, query_step),
                                          .first_group = g,
                                          .n_group = std::min(group - g, group_step)},
                                .first_row = 0,
                                .end_row = head.n_rows,
                                .sides = first_side + 2 * h,
                                .kept_floats = 0,
                                .partial = -1,
                                .merge = -1,
                                .tiles = offset,
                                .mass = n_masses_});
        n_masses_ += head.n_rows;
      }
      offset += most_tiles(head.n_rows) * tile_bytes;
      most_rows = std::max<int64_t>(most_rows, head.n_rows);
    }
  }
  masses_.get<float>(static_cast<size_t>(n_masses_));
  reserve_thread_scratch(kernels_.weighed_scratch(params.key_dim, params.value_dim, most_rows));
}

// A prompt's tiles and weights are as large as a layer's rows, and none may follow for long.
void CpuBackend::cancel_pass() noexcept {
  staged_ = Scratch();
  masses_ = Scratch();
}

int32_t CpuBackend::end_pass() {
  cancel_pass();
  return -1;
}

// A query of which whoever is the last to read rows of a kv head weighs these, by the scores that
// all have left.
bool CpuBackend::keeps_scores(const AttendParams& params, const AttendTask& task) {
  return !task.mass.empty() && task.q.rows == 1 &&
         params.n_heads / params.n_kv_heads <= kMaxStripVectors;
}

void CpuBackend::plan_scores(const AttendParams& params, const AttendTask& task, size_t first_job) {
  int64_t stride = 0;
  for (const HeadView& head : task.heads) stride = std::max<int64_t>(stride, head.n_rows);
  for (size_t j = first_job; j < attend_jobs_.size(); ++j) {
    attend_jobs_[j].scores = n_scores_;
    attend_jobs_[j].score_stride = stride;
  }
  n_scores_ += params.n_heads * stride;
  scores_.get<float>(static_cast<size_t>(n_scores_));
}

void CpuBackend::add_masses(const AttendParams& params, std::span<const AttendTask> tasks) {
  for (size_t t = 0; t < tasks.size(); ++t) {
    const AttendTask& task = tasks[t];
    if (task.mass.empty()) continue;
    if (staged_at_[t] >= 0) {
      add_jobs_masses(params, task);
    } else if (!keeps_scores(params, task)) {
      const MassTask mass{task.q, task.heads, task.first_pos, task.log_sums, task.mass};
      attention_mass(params, MassOf::sum, {&mass, 1});
    }
  }
}

void CpuBackend::add_jobs_masses(const AttendParams& params, const AttendTask& task) {
  for (int32_t h = 0; h < params.n_kv_heads; ++h) {
    const int64_t n_rows = task.heads[static_cast<size_t>(h)].n_rows;
    float* mass = task.mass[static_cast<size_t>(h)];
    pool_.parallel((n_rows + kMassRows - 1) / kMassRows, [&](int64_t i) {
      const int64_t end = std::min(n_rows, (i + 1) * kMassRows);
      for (const AttendJob& job : attend_jobs_) {
        if (job.task != &task || job.block.kv_head != h) continue;
        const float* more = masses_.get<float>(0) + job.mass;
        for (int64_t r = i * kMassRows; r < end; ++r) mass[r] += more[r];
      }
    });
  }
}

void CpuBackend::weigh_scores(const AttendParams& params, const AttendJob& job, int32_t end) {
  if (job.scores < 0) return;
  const AttendTask& task = *job.task;
  const int64_t first_head = first_head_of(params, job.block);
  const int64_t offset = job.scores + first_head * job.score_stride + job.first_row;
  kernels_.weigh_scores(
      {.scores = scores_.get<float>(0) + offset,
       .stride = job.score_stride,
       .n_vectors = job.block.n_group,
       .log_sums = task.log_sums + first_head,
       .n = end - job.first_row,
       .mass = task.mass[static_cast<size_t>(job.block.kv_head)] + job.first_row});
}

}  // namespace kve
