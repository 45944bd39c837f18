// How attention is split into chunks. Few queries (decode): parts of the cache that begin at fixed
// positions and are merged in order, so that a query gets the same bits whatever others there are
// (few_rows.h). Many queries: blocks of queries, each against the whole cache, or, where that gives
// few chunks, against parts of it. Shapes alone decide.
#include <algorithm>
#include <atomic>
#include <utility>

#include "base/error.h"
#include "kernels/cpu/attend_block.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/strip_side.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

constexpr int32_t kPartRows = 256;
constexpr int32_t kManyPartRows = 512;  // for many queries, at least
// The same where pages are read code by code, where a part has more to prepare.
// Parts grow with the distance from the start: short caches need several parts for their threads.
constexpr int32_t kStripPartRows = 256;
constexpr int32_t kMostStripPartRows = 2048;
// Chunks of many queries, if they are long enough: several for each thread, whose speed differs. A
// block reads and rounds all rows for itself, which with 48 vectors takes as long as its products.
constexpr int64_t kChunks = 48;
// As many chunks are enough if each has to begin with its queries and to end with a merge.
constexpr int64_t kPartChunks = 24;
constexpr int64_t kLeastBlockVectors = 192;
// What a job costs beside its rows, in rows.
constexpr int64_t kJobRows = 48;
static_assert(kPartRows % kAttendTile == 0 && kManyPartRows % kAttendTile == 0);
// What is prefetched of a job's keys: the parameters of so many pages, the codes of some of them.
constexpr size_t kAskedPages = 4;
constexpr size_t kAskedCodes = 4;
constexpr size_t kAskedParams = 512;  // bytes of a page, at most

int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

SideArgs side_args(const SideView& side, const RotationTable* angles, const int32_t* positions,
                   const StripSide* strips) {
  return {
      .format = side.format,
      .older = side.older.data(),
      .coefficients = side.coefficients,
      .n_tiers = side.n_tiers(),
      .width = side.width,
      .first_channel = side.first_channel,
      .n_channels = side.n_channels,
      .pages = side.pages.data(),
      .n_pages = static_cast<int32_t>(side.pages.size()),
      .bases = side.bases,
      .sinks = side.sinks,
      .sink_rows = side.sink_rows,
      .tail = side.tail,
      .row_stride = side.row_stride,
      .angles = angles == nullptr ? nullptr : angles->rows(),
      .angle_step = angles == nullptr ? 1 : angles->step(),
      .angle_offset = angles == nullptr ? 0 : angles->offset(),
      .positions = positions,
      .strips = strips,
  };
}

// Whether a side has pages whose rows were turned back.
bool is_anchored(const SideView& side) {
  return side.bases != nullptr && !side.pages.empty() && side.bases[0].anchor > 0;
}

void ask_bytes(const void* first, const void* end) {
  constexpr uintptr_t kLine = 64;
  for (auto at = reinterpret_cast<uintptr_t>(first) / kLine * kLine;
       at < reinterpret_cast<uintptr_t>(end); at += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(at));
  }
}

// The row of the token at `position`, or where it would be: it is not before the oldest query.
int32_t row_of(const HeadView& head, int32_t position) {
  if (head.positions == nullptr) return position - head.first_pos;
  const int32_t* end = head.positions + head.n_rows;
  return static_cast<int32_t>(std::lower_bound(head.positions, end, position) - head.positions);
}

// Rows of one part when `blocks` blocks of many queries share the work.
int32_t part_rows(int64_t rows, int64_t blocks) {
  const int64_t parts = std::max<int64_t>(1, kPartChunks / blocks);
  const int64_t least = divide_up(divide_up(rows, parts), kAttendTile) * kAttendTile;
  return static_cast<int32_t>(std::max<int64_t>(least, kManyPartRows));
}

// Queries of one block. The more, the less often rows are decoded; but where the cache has few
// rows, many queries make kChunks chunks only if their blocks are small.
int32_t block_queries(const AttendParams& params, const AttendTask& task, int32_t group_step,
                      int32_t most_vectors) {
  const int64_t n = task.q.rows;
  if (n <= kFewRows) {
    return static_cast<int32_t>(std::clamp<int64_t>(most_vectors / group_step, 1, n));
  }
  const int64_t parts =
      std::max<int64_t>(1, (row_of(task.heads[0], task.first_pos) + n) / kManyPartRows);
  const int64_t wanted =
      std::clamp<int64_t>(n * params.n_heads * parts / kChunks, kLeastBlockVectors, most_vectors);
  const int64_t most = std::max<int64_t>(1, wanted / group_step);
  return static_cast<int32_t>(divide_up(n, divide_up(n, most)));
}

}  // namespace

ReadPath CpuBackend::read_path(const SideView& side, Precision precision) const {
  const bool fused = side.format.id == CodecId::coded
                         ? precision == Precision::fast && reads_strips(side)
                         : side.bases == nullptr;
  return fused ? ReadPath::fused : ReadPath::rebuilt;
}

AttendMethod CpuBackend::method(const AttendParams& params, const AttendTask& task) const {
  if (task.q.rows <= kFewRows) {
    const bool coded = params.precision == Precision::fast &&
                       std::ranges::any_of(task.heads, [](const HeadView& head) {
                         return reads_strips(head.k) || reads_strips(head.v);
                       });
    return coded ? AttendMethod::strips : AttendMethod::rows;
  }
  const auto has_f32 = [](const HeadView& head) {
    return head.k.format.id == CodecId::f32 || head.v.format.id == CodecId::f32;
  };
  const bool round = params.precision == Precision::fast && kernels_.rounded_tiles &&
                     std::ranges::none_of(task.heads, has_f32);
  return round ? AttendMethod::rounded_tiles : AttendMethod::tiles;
}

int64_t CpuBackend::add_strip_sides(const SideView& side) {
  if (side.pages.empty() || !reads_strips(side)) return -1;
  const auto first = static_cast<int64_t>(strip_sides_.size());
  // Later pages never have an earlier basis, but any of its tiers.
  const int n_tiers = side.n_tiers();
  const int last = side.pages.back().basis / n_tiers * n_tiers + n_tiers - 1;
  for (int basis = 0; basis <= last; ++basis) strip_sides_.push_back(strip_side(side, basis));
  return first;
}

int64_t CpuBackend::plan(const AttendParams& params, const AttendTask& task, int64_t partials) {
  const int32_t group = params.n_heads / params.n_kv_heads;
  const AttendMethod how = method(params, task);
  const bool strips = how == AttendMethod::strips;
  const bool codes = params.precision == Precision::fast;
  const int32_t most_vectors = strips ? kMaxStripVectors
                               : how == AttendMethod::rows
                                   ? kMaxAttendVectors
                                   : most_tile_vectors(params.key_dim, params.value_dim);
  const int32_t few_rows = strips ? kStripPartRows : kPartRows;
  const int32_t group_step = std::min(group, most_vectors);
  const auto n_queries = static_cast<int32_t>(task.q.rows);
  const int32_t query_step = block_queries(params, task, group_step, most_vectors);
  const int32_t n_blocks = static_cast<int32_t>(divide_up(n_queries, query_step));
  const int64_t chunks = int64_t{n_blocks} * params.n_kv_heads * divide_up(group, group_step);
  const auto first_side = static_cast<int64_t>(side_strips_.size());
  for (const HeadView& head : task.heads) {
    side_strips_.push_back(codes ? add_strip_sides(head.k) : -1);
    side_strips_.push_back(codes ? add_strip_sides(head.v) : -1);
  }
  // The last queries see most, so their blocks come first.
  for (int32_t block = n_blocks - 1; block >= 0; --block) {
    const int32_t query = block * query_step;
    const int32_t queries = std::min(n_queries - query, query_step);
    for (int32_t head = 0; head < params.n_kv_heads; ++head) {
      const HeadView& view = task.heads[static_cast<size_t>(head)];
      const int32_t last_row = row_of(view, task.first_pos) + query + queries - 1;
      const int32_t end = std::clamp(last_row + 1, 0, view.n_rows);
      int32_t first = 0;
      if (params.window > 0) {
        KVE_ASSERT(view.positions == nullptr);
        const int32_t oldest = task.first_pos + query - params.window + 1 - view.page_offset;
        const int32_t row = oldest / kAttendTile * kAttendTile + view.page_offset - view.first_pos;
        if (oldest >= 0) first = std::clamp(row, 0, end);
      }
      for (int32_t g = 0; g < group; g += group_step) {
        const int32_t groups = std::min(group - g, group_step);
        const int32_t rows = n_queries <= kFewRows ? few_rows : part_rows(end - first, chunks);
        const AttendJob job = {.task = &task,
                               .method = how,
                               .block = {.kv_head = head,
                                         .first_query = query,
                                         .n_queries = queries,
                                         .first_group = g,
                                         .n_group = groups},
                               .first_row = first,
                               .end_row = end,
                               .sides = first_side + 2 * head,
                               .kept_floats = 0,
                               .partial = -1,
                               .merge = -1};
        partials = plan_parts(job, rows, params.value_dim, partials);
      }
    }
  }
  return partials;
}

int32_t CpuBackend::kept_floats(const AttendJob& job) const {
  if (job.method != AttendMethod::strips) return 0;
  const int64_t first = side_strips_[static_cast<size_t>(job.sides + 1)];
  const SideView& side = job.task->heads[static_cast<size_t>(job.block.kv_head)].v;
  const bool one_basis = side.older.empty() && !side.pages.empty() && side.pages.back().basis == 0;
  if (first < 0 || side.bases == nullptr || !one_basis) return 0;
  const auto floats = static_cast<int32_t>(divide_up(side.n_channels, 16) * 16);
  return floats <= kMaxKeptFloats ? floats : 0;
}

int64_t CpuBackend::plan_parts(AttendJob job, int32_t rows, int value_dim, int64_t partials) {
  const int32_t end = job.end_row;
  const HeadView& head = job.task->heads[static_cast<size_t>(job.block.kv_head)];
  const int64_t first_pos = int64_t{head.first_pos} - head.page_offset;
  // A part begins at a position that exceeds a multiple of `rows` by as much as pages do, whatever
  // the first row is.
  const auto part_end = [&](int32_t row) {
    const int64_t position = std::max<int64_t>(0, first_pos + row);
    int64_t size = rows;
    if (job.method == AttendMethod::strips) {
      while (size < kMostStripPartRows && 2 * size <= position) size *= 2;
    }
    return std::min<int64_t>(end, position / size * size + size - first_pos);
  };
  if (part_end(job.first_row) == end) {
    attend_jobs_.push_back(job);
    return partials;
  }
  job.kept_floats = kept_floats(job);
  const int64_t floats = int64_t{kernels_.attend_value_stride(value_dim)} + job.kept_floats + 2;
  const auto first_job = static_cast<int64_t>(attend_jobs_.size());
  job.merge = static_cast<int64_t>(merge_jobs_.size());
  for (int32_t row = job.first_row; row < end; row = job.end_row) {
    job.first_row = row;
    job.end_row = static_cast<int32_t>(part_end(row));
    job.partial = partials;
    partials += job.block.n_queries * job.block.n_group * floats;
    attend_jobs_.push_back(job);
  }
  const int64_t n_jobs = static_cast<int64_t>(attend_jobs_.size()) - first_job;
  merge_jobs_.push_back({first_job, n_jobs, static_cast<int32_t>(n_jobs)});
  return partials;
}

bool CpuBackend::differ_in_rows_only(const AttendJob& a, const AttendJob& b) {
  return a.task == b.task && a.block == b.block;
}

AttendChunk CpuBackend::chunk_of(const AttendParams& params, const AttendTask& task,
                                 const QueryBlock& block, int64_t sides) {
  const HeadView& view = task.heads[static_cast<size_t>(block.kv_head)];
  const int64_t first_head = first_head_of(params, block);
  const int32_t row = row_of(view, task.first_pos);
  AttendChunk chunk = {};
  chunk.k = side_args(view.k, angles(view), view.positions, strips_at(sides));
  chunk.v = side_args(view.v, nullptr, view.positions, strips_at(sides + 1));
  chunk.first_pos = view.first_pos;
  chunk.page_offset = view.page_offset;
  chunk.dead = view.dead;
  chunk.q = task.q.row(block.first_query) + first_head * params.key_dim;
  chunk.q_stride = task.q.stride;
  chunk.n_tokens = block.n_queries;
  chunk.n_group = block.n_group;
  chunk.query_pos = view.first_pos + row + block.first_query;
  chunk.dropped = task.first_pos - view.first_pos - row;
  chunk.scale = params.scale;
  chunk.softcap = params.softcap;
  chunk.window = params.window;
  chunk.alibi = params.alibi == nullptr ? nullptr : params.alibi + first_head;
  return chunk;
}

void CpuBackend::run(const AttendJob& job, const AttendParams& params, int thread) {
  const AttendJob* latest = std::exchange(latest_jobs_[static_cast<size_t>(thread)], &job);
  const AttendTask& task = *job.task;
  AttendChunk chunk = chunk_of(params, task, job.block, job.sides);
  chunk.method = job.method;
  chunk.first_row = job.first_row;
  chunk.end_row = job.end_row;
  if (job.partial < 0) {
    const int64_t first_head = first_head_of(params, job.block);
    chunk.out = task.out.row(job.block.first_query) + first_head * params.value_dim;
    chunk.out_stride = task.out.stride;
    chunk.log_sums = log_sums_of(params, job);
    chunk.log_sum_stride = params.n_heads;
  } else {
    chunk.partial = partials_.get<float>(0) + job.partial;
    chunk.kept_floats = job.kept_floats;
  }
  if (job.scores >= 0) {
    chunk.scores =
        scores_.get<float>(0) + job.scores + first_head_of(params, job.block) * job.score_stride;
    chunk.score_stride = job.score_stride;
  }
  if (job.method == AttendMethod::weighed_tiles) {
    chunk.n_rows = task.heads[static_cast<size_t>(job.block.kv_head)].n_rows;
    chunk.tiles = staged_.get<std::byte>(0) + job.tiles;
    chunk.mass = masses_.get<float>(0) + job.mass;
  }
  chunk.prepared = latest != nullptr && differ_in_rows_only(*latest, job);
  chunk.scratch = thread_scratch(thread);
  kernels_.attend(chunk);
  if (job.merge < 0) return weigh_scores(params, job, job.end_row);
  MergeJob& merged = merge_jobs_[static_cast<size_t>(job.merge)];
  const std::atomic_ref<int32_t> left(merged.left);
  if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) merge(merged, params);
}

float* CpuBackend::log_sums_of(const AttendParams& params, const AttendJob& job) {
  if (job.task->log_sums == nullptr) return nullptr;
  return job.task->log_sums + int64_t{job.block.first_query} * params.n_heads +
         first_head_of(params, job.block);
}

void CpuBackend::merge(const MergeJob& merged, const AttendParams& params) {
  const AttendJob& job = attend_jobs_[static_cast<size_t>(merged.first_job)];
  const int n_vectors = job.block.n_queries * job.block.n_group;
  const int64_t part_stride =
      int64_t{n_vectors} * (kernels_.attend_value_stride(params.value_dim) + job.kept_floats + 2);
  kernels_.attend_merge({
      .partial = partials_.get<float>(0) + job.partial,
      .part_stride = part_stride,
      .n_parts = static_cast<int32_t>(merged.n_jobs),
      .n_tokens = job.block.n_queries,
      .n_group = job.block.n_group,
      .value_dim = params.value_dim,
      .kept_floats = job.kept_floats,
      .basis = job.task->heads[static_cast<size_t>(job.block.kv_head)].v.bases,
      .out = job.task->out.row(job.block.first_query) +
             first_head_of(params, job.block) * params.value_dim,
      .out_stride = job.task->out.stride,
      .log_sums = log_sums_of(params, job),
      .log_sum_stride = params.n_heads,
  });
  const auto last = static_cast<size_t>(merged.first_job + merged.n_jobs - 1);
  weigh_scores(params, job, attend_jobs_[last].end_row);
}

// The angles of a head's anchors; null where it has none.
const RotationTable* CpuBackend::angles(const HeadView& head) {
  if (!is_anchored(head.k)) return nullptr;
  const int64_t last = head.positions != nullptr ? head.positions[head.n_rows - 1]
                                                 : int64_t{head.first_pos} + head.n_rows;
  return &rotations_.get(head.k.bases[0], head.page_offset, last);
}

void CpuBackend::attend(const AttendParams& params, std::span<const AttendTask> tasks) {
  // Made before the threads run, which only read them.
  for (const AttendTask& task : tasks) {
    for (const HeadView& head : task.heads) angles(head);
  }
  attend_jobs_.clear();
  strip_sides_.clear();
  side_strips_.clear();
  stage(params, tasks);
  latest_jobs_.assign(thread_scratch_.size(), nullptr);
  merge_jobs_.clear();
  int64_t partials = 0;
  n_masses_ = 0;
  n_scores_ = 0;
  for (size_t t = 0; t < tasks.size(); ++t) {
    if (staged_at_[t] >= 0) {
      plan_weighed(params, tasks[t], staged_at_[t]);
      continue;
    }
    const size_t first_job = attend_jobs_.size();
    partials = plan(params, tasks[t], partials);
    if (keeps_scores(params, tasks[t])) plan_scores(params, tasks[t], first_job);
  }
  partials_.get<float>(static_cast<size_t>(partials));
  // Rows may have more coefficients, those of several heads, than values.
  int key_numbers = params.key_dim;
  int value_numbers = params.value_dim;
  for (const AttendTask& task : tasks) {
    for (const HeadView& head : task.heads) {
      key_numbers = std::max(key_numbers, head.k.n_channels);
      value_numbers = std::max(value_numbers, head.v.n_channels);
    }
  }
  reserve_thread_scratch(kernels_.attend_scratch(key_numbers, value_numbers));
  run_jobs(params);
  add_masses(params, tasks);
}

void CpuBackend::run_jobs(const AttendParams& params) {
  const auto n = static_cast<int64_t>(attend_jobs_.size());
  const auto run_job = [&](int64_t i, int thread) {
    run(attend_jobs_[static_cast<size_t>(i)], params, thread);
  };
  // Of many queries, the longest chunks come first; of few, the jobs are in the order of the cache.
  const bool few = std::ranges::all_of(
      attend_jobs_, [](const AttendJob& job) { return job.task->q.rows <= kFewRows; });
  if (!few) return pool_.parallel(n, run_job);
  const auto n_lanes = static_cast<int>(std::min<int64_t>(pool_.size(), n));
  lanes_.assign(n, n_lanes, [&](int64_t i) {
    const AttendJob& job = attend_jobs_[static_cast<size_t>(i)];
    return job.end_row - job.first_row + kJobRows;
  });
  pool_.parallel(n_lanes, [&](int64_t index, int thread) {
    const auto lane = static_cast<int>(index);
    if (const int64_t first = lanes_.peek(lane); first >= 0) ask_for(first, -1);
    for (int64_t i = lanes_.take(lane); i >= 0; i = lanes_.take(lane)) {
      if (const int64_t next = lanes_.peek(lane); next >= 0) ask_for(next, i);
      run_job(i, thread);
    }
  });
}

// Prefetches what a job reads first, while the job before it on the same thread goes on. Where that
// ends with the rows before it, it does so itself.
void CpuBackend::ask_for(int64_t number, int64_t before) const {
  const AttendJob& job = attend_jobs_[static_cast<size_t>(number)];
  if (job.method != AttendMethod::strips) return;
  const AttendJob* latest = before < 0 ? nullptr : &attend_jobs_[static_cast<size_t>(before)];
  const bool prepared = latest != nullptr && differ_in_rows_only(*latest, job);
  if (prepared && latest->end_row == job.first_row) return;
  const SideView& side = job.task->heads[static_cast<size_t>(job.block.kv_head)].k;
  const StripSide* strips = strips_at(job.sides);
  if (strips == nullptr) return;
  const int32_t row = std::max(job.first_row - side.sink_rows, 0);
  const auto first = static_cast<size_t>(row / kPageTokens);
  const size_t end = std::min(first + kAskedPages, side.pages.size());
  for (size_t p = first; p < end; ++p) {
    const PageView& page = side.pages[p];
    const StripSide& own = strips[page.basis];
    const size_t from = p < first + kAskedCodes ? own.code_offset : own.scale_offset;
    const size_t to = std::min(static_cast<size_t>(page.bytes), own.scale_offset + kAskedParams);
    ask_bytes(page.data + from, page.data + to);
  }
  if (prepared || side.bases == nullptr || first >= side.pages.size()) return;
  const BasisView& basis = side.bases[side.pages[first].basis];
  const auto numbers = static_cast<size_t>(basis.block) * static_cast<size_t>(basis.block_width);
  if (basis.lift8 != nullptr) {
    ask_bytes(basis.lift8, basis.lift8 + numbers);
    ask_bytes(basis.lift8_scale, basis.lift8_scale + basis.block);
  } else {
    ask_bytes(basis.lift, basis.lift + numbers);
  }
}

}  // namespace kve
