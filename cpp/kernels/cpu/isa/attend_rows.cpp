// Attention of few queries: reading the cache is what takes time. Rows are converted in registers
// and used by several query vectors at once; the memory that is read next is prefetched across the
// borders of pages and from keys to values.
#include "kernels/cpu/isa/attend.h"
#include "kernels/cpu/isa/side_reader.h"

namespace kve::KVE_ISA {

// Rows of one run: few enough that several passes over them read the nearest cache.
constexpr int64_t kRunBytes = 8192;
constexpr int32_t kCodedRows = kTile;  // decoded at a time
constexpr int64_t kScoreStride =
    kTile + kLanes;  // a run's last scores are written kLanes at a time
// How far prefetching is ahead of reading. 8 KB, a run, is faster than 4 where lines go to the
// second cache; on AMD's set, whose lines go to the first, it was not tried.
#if defined(KVE_BF16_DOT)
constexpr int64_t kAheadBytes = 4096;
#else
constexpr int64_t kAheadBytes = 8192;
#endif

namespace {

struct RowWork {
  float* scores;  // [n_vectors][kScoreStride]: of one tile, then weights
  float* coded;   // [kCodedRows][width]
  std::byte* lifting;
  size_t size;

  // lifted: numbers of the rows that are rebuilt.
  RowWork(std::byte* data, int key_dim, int value_dim, int lifted) {
    Carver carver(data);
    scores = carver.take<float>(kMaxAttendVectors * kScoreStride);
    const int widest = key_dim > value_dim ? key_dim : value_dim;
    coded = carver.take<float>(kCodedRows * int64_t{widest});
    lifting = carver.take<std::byte>(static_cast<int64_t>(lift_scratch(lifted)));
    size = carver.size();
  }
};

}  // namespace

static inline void prefetch_ahead(const Ahead& ahead, int64_t first_byte, int64_t n_bytes) {
  if (ahead.bytes == 0) return;
  const int64_t first = first_byte + kAheadBytes;
  const std::byte* from =
      first < ahead.bytes ? ahead.run + first : ahead.next + (first - ahead.bytes);
  for (int64_t b = 0; b < n_bytes; b += 64) prefetch_once(from + b);
}

// acc[r][v] += x[r] * lanes of the v-th query
template <int kVectors>
__attribute__((always_inline)) static inline void dot_step(F32 (&acc)[4][kVectors],
                                                           const F32 (&x)[4], const float* q,
                                                           int64_t q_stride) {
  KVE_UNROLL(4)
  for (int v = 0; v < kVectors; ++v) {
    const F32 query = load(q + v * q_stride);
    KVE_UNROLL(4)
    for (int r = 0; r < 4; ++r) acc[r][v] = fma(x[r], query, acc[r][v]);
  }
}

// Scores of n rows with kVectors queries. Four rows at a time, so that a query's lanes are loaded
// once for all of them; rows past the end repeat the last one. Scores are written up to the next
// multiple of kLanes.
template <CodecId kType, int kVectors>
__attribute__((noinline)) static void score_rows(const std::byte* data, int64_t n, int64_t width,
                                                 int64_t stride, const float* q, int64_t q_stride,
                                                 float* scores, int64_t score_stride,
                                                 const Ahead& ahead) {
  const auto* rows = row_values<kType>(data);
  constexpr int64_t kValueBytes = sizeof(*rows);
  for (int64_t first = 0; first < n; first += kLanes) {
    F32 sums[kVectors][kLanes / 4];
    for (int b = 0; b < kLanes / 4; ++b) {
      const int64_t r0 = first + 4 * b;
      const auto* row0 = rows + least(r0, n - 1) * stride;
      const auto* row1 = rows + least(r0 + 1, n - 1) * stride;
      const auto* row2 = rows + least(r0 + 2, n - 1) * stride;
      const auto* row3 = rows + least(r0 + 3, n - 1) * stride;
      prefetch_ahead(ahead, r0 * stride * kValueBytes, 4 * stride * kValueBytes);
      F32 acc[4][kVectors];
      KVE_UNROLL(4)
      for (int r = 0; r < 4; ++r) {
        KVE_UNROLL(4)
        for (int v = 0; v < kVectors; ++v) acc[r][v] = zero();
      }
      int64_t d = 0;
      for (; d + kLanes <= width; d += kLanes) {
        const F32 x[4] = {load_values<kType>(row0 + d), load_values<kType>(row1 + d),
                          load_values<kType>(row2 + d), load_values<kType>(row3 + d)};
        dot_step<kVectors>(acc, x, q + d, q_stride);
      }
      if (d < width) {
        const int64_t rest = width - d;
        const F32 x[4] = {
            load_values_n<kType>(row0 + d, rest), load_values_n<kType>(row1 + d, rest),
            load_values_n<kType>(row2 + d, rest), load_values_n<kType>(row3 + d, rest)};
        dot_step<kVectors>(acc, x, q + d, q_stride);
      }
      KVE_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        sums[v][b] = block_sums(acc[0][v], acc[1][v], acc[2][v], acc[3][v]);
      }
    }
    KVE_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      store(scores + v * score_stride + first, join_sums(sums[v]));
    }
  }
}

// sums[v] += the n rows times their weights, for kColumns vectors of columns (the last one may hold
// fewer than kLanes).
template <CodecId kType, int kVectors, int kColumns, bool kWhole, class Value>
__attribute__((noinline)) static void add_columns(const Value* rows, int64_t n, int64_t stride,
                                                  int64_t rest, const float* weights,
                                                  int64_t weight_stride, float* sums,
                                                  int64_t sums_stride, const Ahead& ahead) {
  F32 acc[kVectors][kColumns];
  KVE_UNROLL(4)
  for (int v = 0; v < kVectors; ++v) {
    KVE_UNROLL(4)
    for (int c = 0; c < kColumns; ++c) acc[v][c] = load(sums + v * sums_stride + c * kLanes);
  }
  constexpr int64_t kStep = 4;  // rows between prefetches
  constexpr auto kValueBytes = static_cast<int64_t>(sizeof(Value));
  for (int64_t first = 0; first < n; first += kStep) {
    prefetch_ahead(ahead, first * stride * kValueBytes, kStep * stride * kValueBytes);
    const int64_t end = least(first + kStep, n);
    for (int64_t r = first; r < end; ++r) {
      F32 x[kColumns];
      KVE_UNROLL(4)
      for (int c = 0; c < kColumns; ++c) {
        const Value* from = rows + r * stride + c * kLanes;
        x[c] = kWhole ? load_values<kType>(from) : load_values_n<kType>(from, rest);
      }
      KVE_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        const F32 weight = set(weights[v * weight_stride + r]);
        KVE_UNROLL(4)
        for (int c = 0; c < kColumns; ++c) acc[v][c] = fma(x[c], weight, acc[v][c]);
      }
    }
  }
  KVE_UNROLL(4)
  for (int v = 0; v < kVectors; ++v) {
    KVE_UNROLL(4)
    for (int c = 0; c < kColumns; ++c) store(sums + v * sums_stride + c * kLanes, acc[v][c]);
  }
}

template <CodecId kType, int kVectors>
static void add_rows(const std::byte* data, int64_t n, int64_t width, int64_t stride,
                     const float* weights, int64_t weight_stride, float* sums, int64_t sums_stride,
                     const Ahead& ahead) {
  const auto* rows = row_values<kType>(data);
  Ahead once = ahead;  // for the first columns, which are read from memory
  int64_t c = 0;
  for (; c + 4 * kLanes <= width; c += 4 * kLanes, once.bytes = 0) {
    add_columns<kType, kVectors, 4, true>(rows + c, n, stride, 0, weights, weight_stride, sums + c,
                                          sums_stride, once);
  }
  for (; c + kLanes <= width; c += kLanes, once.bytes = 0) {
    add_columns<kType, kVectors, 1, true>(rows + c, n, stride, 0, weights, weight_stride, sums + c,
                                          sums_stride, once);
  }
  if (c < width) {
    add_columns<kType, kVectors, 1, false>(rows + c, n, stride, width - c, weights, weight_stride,
                                           sums + c, sums_stride, once);
  }
}

namespace {

// Both loops for one type of rows and number of vectors.
struct RowKernels {
  void (*score)(const std::byte* data, int64_t n, int64_t width, int64_t stride, const float* q,
                int64_t q_stride, float* scores, int64_t score_stride, const Ahead& ahead);
  void (*add)(const std::byte* data, int64_t n, int64_t width, int64_t stride, const float* weights,
              int64_t weight_stride, float* sums, int64_t sums_stride, const Ahead& ahead);
};

}  // namespace

template <CodecId kType>
static RowKernels kernels_for(int64_t n_vectors) {
  static_assert(kRowVectors == 2 || kRowVectors == 4);
  if constexpr (kRowVectors == 4) {
    if (n_vectors == 4) return {score_rows<kType, 4>, add_rows<kType, 4>};
    if (n_vectors == 3) return {score_rows<kType, 3>, add_rows<kType, 3>};
  }
  if (n_vectors == 2) return {score_rows<kType, 2>, add_rows<kType, 2>};
  return {score_rows<kType, 1>, add_rows<kType, 1>};
}

static RowKernels kernels_for(CodecId type, int64_t n_vectors) {
  switch (type) {
    case CodecId::f32:
      return kernels_for<CodecId::f32>(n_vectors);
    case CodecId::f16:
      return kernels_for<CodecId::f16>(n_vectors);
    default:
      return kernels_for<CodecId::bf16>(n_vectors);
  }
}

static int64_t bytes_of_value(CodecId type) { return type == CodecId::f32 ? 4 : 2; }

// Vectors [first, n) in groups: the number of the next group.
static int64_t group_of(int64_t first, int64_t n) { return least(n - first, kRowVectors); }

// Runs of at most this many rows.
static int32_t run_rows(int width) {
  const int64_t rows = kRunBytes / (2 * int64_t{width}) / kLanes * kLanes;
  return static_cast<int32_t>(rows < kLanes ? int64_t{kLanes} : rows);
}

static Ahead look_ahead(const RowRun& run, const std::byte* next, bool sparse) {
  const int64_t bytes = run.rows * run.stride * bytes_of_value(run.type);
  // Between rows that are not read, runs are short: while one is read, the next is asked for.
  if (sparse && next != nullptr && bytes < kAheadBytes) return {run.data, next, kAheadBytes};
  // Past a run that is shorter than the distance, too much would be skipped: it is not worth it.
  const bool useful = next != nullptr && bytes >= kAheadBytes;
  return {run.data, next, useful ? bytes : 0};
}

void dot_f16_rows(const RowDots& job, float* out, int64_t stride) {
  kernels_for(CodecId::f16, job.n_vectors)
      .score(reinterpret_cast<const std::byte*>(job.rows), job.n, job.width, job.width, job.vectors,
             job.vector_stride, out, stride, {});
}

void dot_halves(const HalfDots& job) {
  for (int64_t v = 0; v < job.n_vectors; v += kRowVectors) {
    const RowDots some = {job.rows,          job.n,
                          job.width,         job.vectors + v * job.vector_stride,
                          job.vector_stride, group_of(v, job.n_vectors)};
    dot_f16_rows(some, job.out + v * job.out_stride, job.out_stride);
  }
}

void score_row_run(const AttendState& state, const RowRun& run, int width, float* scores,
                   int64_t stride, Ahead ahead) {
  for (int64_t v = 0; v < state.n_vectors; v += kRowVectors, ahead.bytes = 0) {
    kernels_for(run.type, group_of(v, state.n_vectors))
        .score(run.data, run.rows, width, run.stride, state.queries + v * state.key_stride,
               state.key_stride, scores + v * stride, stride, ahead);
  }
}

void add_row_run(const AttendState& state, const RowRun& run, int width, const float* weights,
                 int64_t stride, Ahead ahead) {
  for (int64_t v = 0; v < state.n_vectors; v += kRowVectors, ahead.bytes = 0) {
    kernels_for(run.type, group_of(v, state.n_vectors))
        .add(run.data, run.rows, width, run.stride, weights + v * stride, stride,
             state.sums + v * state.value_stride, state.value_stride, ahead);
  }
}

// Scores of the rows [base, base + n) with every vector.
static void score_tile(const AttendChunk& chunk, const AttendState& state, const RowWork& work,
                       SideReader& keys, const SideReader& values, int32_t base, int32_t n) {
  const int width = chunk.k.width;
  for (int32_t done = 0; done < n;) {
    const auto most = static_cast<int32_t>(least(n - done, run_rows(width)));
    const RowRun run = keys.read(base + done, most, work.coded, kCodedRows);
    const bool last = done + run.rows == n;
    const std::byte* next = last ? values.peek(base) : keys.peek(base + done + run.rows);
    score_row_run(state, run, width, work.scores + done, kScoreStride,
                  look_ahead(run, next, chunk.dead != nullptr));
    done += run.rows;
  }
}

// Scores become weights; those of rows that a vector does not see become 0.
static void weigh_tile(const AttendChunk& chunk, const AttendState& state, const RowWork& work,
                       int32_t base, int32_t n) {
  for (int64_t v = 0; v < state.n_vectors; ++v) {
    float* scores = work.scores + v * kScoreStride;
    if (!limit_scores(chunk, v, base, n, scores)) {
      for (int32_t i = 0; i < n; i += kLanes) store(scores + i, zero());
      continue;
    }
    keep_scores(chunk, v, base, n, scores);
    const F32 unit = update_unit(state, v, scores, n);
    F32 total = load(state.weight + v * kLanes);
    for (int32_t i = 0; i < n; i += kLanes) {
      const F32 p = exp2(load(scores + i) - unit);
      store(scores + i, p);
      total = total + p;
    }
    store(state.weight + v * kLanes, total);
  }
}

// Adds the rows [base, base + n), times their weights; then come the keys from row `next` on.
static void add_tile(const AttendChunk& chunk, const AttendState& state, const RowWork& work,
                     SideReader& values, int32_t base, int32_t n, const std::byte* next) {
  const int width = chunk.v.width;
  for (int32_t done = 0; done < n;) {
    const auto most = static_cast<int32_t>(least(n - done, run_rows(width)));
    const RowRun run = values.read(base + done, most, work.coded, kCodedRows);
    const bool last = done + run.rows == n;
    const std::byte* after = last ? next : values.peek(base + done + run.rows);
    add_row_run(state, run, width, work.scores + done, kScoreStride,
                look_ahead(run, after, chunk.dead != nullptr));
    done += run.rows;
  }
}

size_t attend_rows_scratch(int key_dim, int value_dim) {
  return RowWork(nullptr, key_dim, value_dim, key_dim > value_dim ? key_dim : value_dim).size;
}

void attend_rows(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                 std::byte* scratch) {
  const RowWork work(scratch, chunk.k.width, chunk.v.width, row_numbers(chunk));
  SideReader keys(chunk.k, chunk.first_pos, false, work.lifting);
  SideReader values(chunk.v, chunk.first_pos, false, work.lifting);
  LiveRows rows = live_rows(chunk, first, end);
  while (rows.n > 0) {
    const LiveRows next = live_rows(chunk, rows.base + rows.n, end);
    score_tile(chunk, state, work, keys, values, rows.base, rows.n);
    weigh_tile(chunk, state, work, rows.base, rows.n);
    add_tile(chunk, state, work, values, rows.base, rows.n,
             next.n > 0 ? keys.peek(next.base) : nullptr);
    rows = next;
  }
}

}  // namespace kve::KVE_ISA
