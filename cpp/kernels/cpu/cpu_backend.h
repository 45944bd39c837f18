// The CPU backend: splits each operation into fixed chunks for the thread pool and calls the
// kernels of one instruction set (kernels.h).
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cpu/job_lanes.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rotation_table.h"

namespace kve {

class CpuBackend final : public Backend {
 public:
  CpuBackend(int n_threads, const Kernels& kernels);

  std::string_view name() const override { return name_; }
  ThreadPool& pool() override { return pool_; }
  int32_t end_pass() override;
  void cancel_pass() noexcept override;

  size_t repacked_bytes(const Weight& weight) const override;
  void repack(const Weight& weight, std::byte* memory) override;
  void embed(const Weight& table, std::span<const Token> tokens, float scale, Mat out) override;
  void matmul(ConstMat x, std::span<const Product> products, Precision precision) override;
  void rms_norm(ConstMat x, const float* weight, float eps, Mat out) override;
  void rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin) override;
  void gated(Activation activation, Mat gate, ConstMat up) override;
  bool fused_block(ConstMat x, const GatedBlock& block, Precision in, Precision out) override;
  void add(Mat x, ConstMat y) override;
  void add_rms_norm(Mat x, ConstMat y, const float* weight, float eps, Mat out) override;
  void softcap(float cap, Mat x) override;
  void clamp(float limit, Mat x) override;
  void attend(const AttendParams& params, std::span<const AttendTask> tasks) override;
  void attention_mass(const AttendParams& params, MassOf what,
                      std::span<const MassTask> tasks) override;
  ReadPath read_path(const SideView& side, Precision precision) const override;
  void dot_halves(const HalfDots& job) const override { kernels_.dot_halves(job); }
  int64_t add_gram(const HalfGram& job) const override { return kernels_.gram_halves(job); }
  int64_t seal(std::span<const SealJob> jobs) override;

 private:
  // How one product is computed: f32; few inputs against the file's layout; few against repacked
  // tiles; many, packed as planes of int8 or as bf16 (planes and what follows are of packs).
  enum class Path : uint8_t { exact, vector, tiles, planes, bf16 };
  static constexpr size_t kPaths = 5;
  // Some rows of a weight with some inputs.
  struct MatmulPart {
    int64_t first_row;
    int64_t n_rows;
    int64_t first_input;
    int64_t n_inputs;
  };
  struct MatmulJob {
    const Product* product;
    Path path;
    MatmulPart part;
  };
  // All rows and inputs of a product, and how many of them a part has.
  struct MatmulGrid {
    int64_t rows;
    int64_t part_rows;
    int64_t inputs;
    int64_t part_inputs;
  };
  // Query vectors of one task that share a kv head.
  struct QueryBlock {
    int32_t kv_head;
    int32_t first_query;
    int32_t n_queries;
    int32_t first_group;  // of the query heads of kv_head
    int32_t n_group;

    bool operator==(const QueryBlock&) const = default;
  };
  static int64_t first_head_of(const AttendParams& params, const QueryBlock& block) {
    return int64_t{block.kv_head} * (params.n_heads / params.n_kv_heads) + block.first_group;
  }
  // They, against all or some of the cache's rows.
  struct AttendJob {
    const AttendTask* task;
    AttendMethod method;
    QueryBlock block;
    int32_t first_row;
    int32_t end_row;
    int64_t sides;        // of side_strips_: keys, then values
    int32_t kept_floats;  // as in AttendChunk
    int64_t partial;      // offset in partials_; -1: writes the output itself
    int64_t merge;        // of merge_jobs_, where there is a partial result
    // Of weighed_tiles: offsets in staged_ and masses_.
    int64_t tiles = -1;
    int64_t mass = -1;
    // Offset in scores_ of those of the task's first head, `score_stride` apart; -1: not kept.
    int64_t scores = -1;
    int64_t score_stride = 0;
  };
  // Rows of one kv head of one task, which all queries of the task weigh.
  struct MassJob {
    int64_t task;
    int32_t kv_head;
    int32_t first_row;
    int32_t end_row;
    int64_t sides;  // as in AttendJob
  };
  static bool differ_in_rows_only(const AttendJob& a, const AttendJob& b);
  // Jobs [first_job, first_job + n_jobs) differ in their cache rows only. Whoever does the last of
  // them adds up their results.
  struct MergeJob {
    int64_t first_job;
    int64_t n_jobs;
    int32_t left;  // jobs that are not done yet
  };

  // Runs body(row) for every row, in parallel when rows * cols is worth it.
  template <class Body>
  void for_rows(int64_t rows, int64_t cols, const Body& body);
  // Runs body(i, thread) for all of [0, n). Every thread has a stretch of neighbours, so that what
  // one operation left of some rows is near to the thread that has them in the next one.
  template <class Body>
  void in_stretches(int64_t n, const Body& body) {
    lanes_.assign(n, pool_.size(), [](int64_t) { return 1; });
    pool_.parallel(std::min<int64_t>(n, pool_.size()), [&](int64_t, int thread) {
      for (int64_t i = lanes_.take(thread); i >= 0; i = lanes_.take(thread)) body(i, thread);
    });
  }
  // The same with body(part, thread) for the parts of a grid; those of the same inputs are
  // neighbours.
  template <class Body>
  void for_parts(const MatmulGrid& grid, const Body& body) {
    const int64_t n = (grid.rows + grid.part_rows - 1) / grid.part_rows;
    const int64_t blocks = (grid.inputs + grid.part_inputs - 1) / grid.part_inputs;
    in_stretches(n * blocks, [&](int64_t i, int thread) {
      const int64_t row = i % n * grid.part_rows;
      const int64_t input = i / n * grid.part_inputs;
      body(MatmulPart{row, std::min(grid.rows - row, grid.part_rows), input,
                      std::min(grid.inputs - input, grid.part_inputs)},
           thread);
    });
  }
  std::byte* thread_scratch(int thread) {
    return thread_scratch_[static_cast<size_t>(thread)].get<std::byte>(0);
  }
  void reserve_thread_scratch(size_t bytes);
  // Of reads_: products may be computed outside of any pass, and without end.
  static constexpr size_t kMostReads = 1 << 16;
  // A product with few inputs is about to begin, of which a thread reads first(thread) first: while
  // they wait, its threads will ask for what those of the next one began with in the pass before.
  template <class First>
  void ask_ahead(const First& first) {
    const auto n = static_cast<size_t>(pool_.size());
    if (n_reads_ + 2 * n > kMostReads) return;
    if (reads_.size() < n_reads_ + 2 * n) reads_.resize(n_reads_ + 2 * n);
    for (int thread = 0; thread < pool_.size(); ++thread) {
      reads_[n_reads_] = first(thread);
      pool_.ask_ahead(thread, reads_[n_reads_ + n]);
      ++n_reads_;
    }
  }
  Path choose_path(const Product& product, Precision precision, int64_t n_tokens) const;
  // The kernels of a path of many inputs.
  const PackedProducts& packed(Path path) const;
  int64_t job_rows(const Weight& weight, Path path, int64_t n_inputs) const;
  // Rows of one chunk of a product of packed inputs.
  int64_t packed_rows(const PackedProducts& kernels, int64_t rows, int64_t n_inputs) const;
  // Inputs of one chunk, whole packs.
  static int64_t block_inputs(const PackedProducts& kernels, int64_t n_inputs);
  // Bytes of the packs before that of an input.
  static size_t packs_before(const PackedProducts& kernels, int64_t cols, int64_t input);
  // As the kernels of a path want it; valid until the next call for that path.
  const std::byte* quantize_input(ConstMat x, Precision precision, Path path);
  void add_jobs(const Product& product, Path path, int64_t n_inputs);
  void run(const MatmulJob& job, ConstMat x, std::byte* scratch) const;
  // The beginning of the weights of a job.
  Stretch weights_of(const MatmulJob& job) const;
  MatmulChunk chunk_of(const Product& product, const MatmulPart& part, std::byte* scratch) const;
  // Appends the jobs of one task; returns the floats of partial results planned so far.
  int64_t plan(const AttendParams& params, const AttendTask& task, int64_t partials);
  // cpu_attend_weighed.cpp: tasks whose weights are wanted. Prepares the tiles of those that attend
  // with weighed_tiles; staged_at_ says which.
  void stage(const AttendParams& params, std::span<const AttendTask> tasks);
  bool can_stage(const AttendParams& params, const AttendTask& task) const;
  bool stage(const AttendParams& params, const AttendTask& task, int64_t offset);
  // Appends the jobs of such a task.
  void plan_weighed(const AttendParams& params, const AttendTask& task, int64_t tiles);
  static bool keeps_scores(const AttendParams& params, const AttendTask& task);
  void plan_scores(const AttendParams& params, const AttendTask& task, size_t first_job);
  void add_masses(const AttendParams& params, std::span<const AttendTask> tasks);
  void add_jobs_masses(const AttendParams& params, const AttendTask& task);
  // Of the rows from the job's first on, before row `end`.
  void weigh_scores(const AttendParams& params, const AttendJob& job, int32_t end);
  // The same for one block of queries, in parts of at most `rows` cache rows.
  int64_t plan_parts(AttendJob job, int32_t rows, int value_dim, int64_t partials);
  AttendMethod method(const AttendParams& params, const AttendTask& task) const;
  AttendMethod mass_method(const AttendParams& params, const MassTask& task) const;
  // Without rows, method and output. `sides` as in AttendJob.
  AttendChunk chunk_of(const AttendParams& params, const AttendTask& task, const QueryBlock& block,
                       int64_t sides);
  static float* log_sums_of(const AttendParams& params, const AttendJob& job);
  void run(const AttendJob& job, const AttendParams& params, int thread);
  void run_jobs(const AttendParams& params);
  void ask_for(int64_t number, int64_t before) const;
  void merge(const MergeJob& job, const AttendParams& params);
  const RotationTable* angles(const HeadView& head);
  void weigh_rows(const AttendParams& params, MassOf what, const MassTask& task, const MassJob& job,
                  std::byte* scratch);
  // Describes a side for every basis of its pages; returns the first of them in strip_sides_, or -1
  // where its pages are not read code by code.
  int64_t add_strip_sides(const SideView& side);
  int32_t kept_floats(const AttendJob& job) const;
  const StripSide* strips_at(int64_t side) const {
    if (side < 0) return nullptr;
    const int64_t first = side_strips_[static_cast<size_t>(side)];
    return first < 0 ? nullptr : strip_sides_.data() + first;
  }
  const RotationTable& angles_for(const SealJob& job);
  bool seal(const SealJob& job, std::byte* scratch);
  void turn_back(const SealJob& job, const float* angles, int64_t angle_stride, float* rows,
                 float* sines) const;

  const Kernels& kernels_;
  std::string name_;
  ThreadPool pool_;
  // Reused from call to call, so that a decode step allocates nothing.
  std::vector<Scratch> thread_scratch_;
  std::vector<Stretch> reads_;     // of every product with few inputs of a pass, and every thread
  size_t n_reads_ = 0;             // of this pass, up to now
  Scratch input_memory_[kPaths];   // of each Path
  QuantizedInput inputs_[kPaths];  // of each Path
  Scratch gated_packs_;
  Scratch partials_;
  std::vector<float> ones_;  // what is not gated is multiplied with
  RotationTables rotations_;
  std::vector<MatmulJob> matmul_jobs_;
  std::vector<AttendJob> attend_jobs_;
  std::vector<const AttendJob*> latest_jobs_;  // of each thread, or null
  std::vector<StripSide> strip_sides_;
  std::vector<int64_t> side_strips_;  // of every task, head and side: as add_strip_sides() returns
  std::vector<MergeJob> merge_jobs_;
  JobLanes lanes_;
  std::vector<MassJob> mass_jobs_;
  Scratch staged_;                  // tiles of all heads of the tasks that have some
  std::vector<int64_t> staged_at_;  // of each task: offset of its tiles, or -1
  Scratch masses_;                  // of each job of weighed_tiles, [n_rows]
  int64_t n_masses_ = 0;
  Scratch scores_;
  int64_t n_scores_ = 0;
};

}  // namespace kve
