// What queries gave rows, once their sums are known. Chunks are ranges of rows of one kv head, so
// that nothing has to be merged: every chunk meets all queries, block by block.
#include <algorithm>

#include "base/error.h"
#include "kernels/cpu/attend_block.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

// Rows of a chunk. Each prepares the queries for itself.
constexpr int64_t kLeastMassRows = 4 * kAttendTile;
constexpr int64_t kMostMassRows = 16 * kAttendTile;

// Several chunks for each thread.
int32_t rows_of_chunks(int64_t n_rows, int n_threads) {
  const int64_t share = n_rows / (4 * n_threads) / kAttendTile * kAttendTile;
  return static_cast<int32_t>(std::clamp(share, kLeastMassRows, kMostMassRows));
}

}  // namespace

AttendMethod CpuBackend::mass_method(const AttendParams& params, const MassTask& task) const {
  if (task.q.rows <= kFewRows) return AttendMethod::rows;
  const bool round = params.precision == Precision::fast && kernels_.rounded_tiles;
  return round ? AttendMethod::rounded_tiles : AttendMethod::tiles;
}

void CpuBackend::weigh_rows(const AttendParams& params, MassOf what, const MassTask& task,
                            const MassJob& job, std::byte* scratch) {
  const int32_t group = params.n_heads / params.n_kv_heads;
  const int32_t groups = std::min(group, kMaxAttendVectors);
  const int32_t step = kMaxAttendVectors / groups;
  const AttendTask queries = {task.q, task.heads, task.first_pos, Mat(), nullptr};
  const AttendMethod method = mass_method(params, task);
  for (int32_t g = 0; g < group; g += groups) {
    for (int32_t first = 0; first < task.q.rows; first += step) {
      const QueryBlock block = {
          .kv_head = job.kv_head,
          .first_query = first,
          .n_queries = std::min(static_cast<int32_t>(task.q.rows) - first, step),
          .first_group = g,
          .n_group = std::min(group - g, groups),
      };
      AttendChunk chunk = chunk_of(params, queries, block, job.sides);
      chunk.method = method;
      chunk.first_row = job.first_row;
      chunk.end_row = std::min(job.end_row, chunk.query_pos + block.n_queries - chunk.first_pos);
      chunk.scratch = scratch;
      if (chunk.first_row >= chunk.end_row) continue;
      const int64_t sums = int64_t{first} * params.n_heads + first_head_of(params, block);
      kernels_.attention_mass({.chunk = chunk,
                               .log_sums = task.log_sums + sums,
                               .log_sum_stride = params.n_heads,
                               .most = what == MassOf::most,
                               .mass = task.mass[static_cast<size_t>(job.kv_head)]});
    }
  }
}

void CpuBackend::attention_mass(const AttendParams& params, MassOf what,
                                std::span<const MassTask> tasks) {
  mass_jobs_.clear();
  strip_sides_.clear();
  side_strips_.clear();
  int key_numbers = params.key_dim;
  int64_t n_rows = 0;
  for (const MassTask& task : tasks) {
    for (const HeadView& head : task.heads) n_rows += head.n_rows;
  }
  const int32_t chunk_rows = rows_of_chunks(n_rows, pool_.size());
  for (size_t t = 0; t < tasks.size(); ++t) {
    for (int32_t h = 0; h < params.n_kv_heads; ++h) {
      const HeadView& head = tasks[t].heads[static_cast<size_t>(h)];
      angles(head);
      const auto sides = static_cast<int64_t>(side_strips_.size());
      side_strips_.push_back(params.precision == Precision::fast ? add_strip_sides(head.k) : -1);
      side_strips_.push_back(-1);
      key_numbers = std::max(key_numbers, head.k.n_channels);
      // The first rows are fewer, so that all chunks begin with a tile.
      const int32_t before = rows_before_in_tile(head.first_pos, head.page_offset, 0);
      for (int32_t row = 0, end = 0; row < head.n_rows; row = end) {
        const int32_t step = row == 0 && before > 0 ? kAttendTile - before : chunk_rows;
        end = std::min(head.n_rows, row + step);
        mass_jobs_.push_back({static_cast<int64_t>(t), h, row, end, sides});
      }
    }
  }
  reserve_thread_scratch(kernels_.mass_scratch(key_numbers));
  pool_.parallel(static_cast<int64_t>(mass_jobs_.size()), [&](int64_t i, int thread) {
    const MassJob& job = mass_jobs_[static_cast<size_t>(i)];
    weigh_rows(params, what, tasks[static_cast<size_t>(job.task)], job, thread_scratch(thread));
  });
}

}  // namespace kve
