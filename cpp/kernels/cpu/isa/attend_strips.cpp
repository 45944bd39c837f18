// Attention of few queries over coded pages, whose codes are multiplied as they lie in memory
// (coded_pages.h). Rows go through the softmax in runs of kRunTokens, which begin at fixed
// positions; within a run each side may have coded pages first and plain rows after them. What lies
// before the first and after the last coded row is left to attend_rows().
#include <math.h>

#include "kernels/cpu/isa/coded_pages.h"
#include "kernels/cpu/isa/side_reader.h"
#include "kernels/cpu/isa/strip_round.h"

namespace kve::KVE_ISA {

// How far prefetching is ahead of reading.
constexpr int64_t kAheadBytes = 16384;

namespace {

// Scratch memory. Keys and values keep what they prepared for chunks with the same queries.
struct StripWork {
  CodedKeys keys;
  CodedValues values;
  float* scores;    // [kMaxStripVectors][kRunStride], then weights
  float* decoded;   // [kTile][width]: rows of a side that is rebuilt
  std::byte* rows;  // of attend_rows()
  std::byte* lifting;
};

// The rows [base, base + n) of the cache, a multiple of kTile from the start of their run, and the
// pages of both sides that they lie in.
struct Run {
  int32_t base;
  int32_t n;
  CodedRun keys;
  CodedRun values;
};

class StripReader {
 public:
  StripReader(const AttendChunk& chunk, const AttendState& state, StripWork* work)
      : chunk_(chunk),
        state_(state),
        work_(*work),
        key_rows_(chunk.k, chunk.first_pos, false, work->lifting),
        value_rows_(chunk.v, chunk.first_pos, false, work->lifting),
        is_fine_(chunk.v.strips == nullptr || chunk.v.strips->planes == 2) {}

  void attend(int32_t first, int32_t end) {
    // The next chunk mostly goes on where this one ends.
    const int32_t coded_end = most_coded_rows();
    Run run = run_at(first, end);
    ask_first(run);
    while (run.n > 0) {
      const Run next = run_at(run.base + run.n, end);
      score(run);
      weigh(run);
      add(run, next.n > 0 ? next : run_at(run.base + run.n, coded_end));
      run = next;
    }
  }

 private:
  int32_t most_coded_rows() const {
    const int32_t k = coded_rows(chunk_.k).end;
    const int32_t v = coded_rows(chunk_.v).end;
    return k > v ? k : v;
  }
  // The first rows from `base` on that belong to one run and are in tiles of which somebody sees
  // some.
  Run run_at(int32_t base, int32_t end) const {
    while (base < end && is_dead(base, end)) base += tile_rows(chunk_, base, end);
    const auto before =
        static_cast<int32_t>((chunk_.first_pos + base - chunk_.page_offset) % kRunTokens);
    auto n = static_cast<int32_t>(least(end - base, kRunTokens - before));
    for (int32_t row = base; chunk_.dead != nullptr && row < base + n;) {
      if (is_dead(row, end)) n = row - base;
      row += tile_rows(chunk_, row, end);
    }
    return {base, n, coded_at(chunk_.k, base, n), coded_at(chunk_.v, base, n)};
  }
  bool is_dead(int32_t base, int32_t end) const {
    return all_dead(chunk_, base, tile_rows(chunk_, base, end));
  }
  static CodedRun coded_at(const SideArgs& side, int32_t base, int32_t n) {
    const CodedRows coded = coded_rows(side);
    const auto end = static_cast<int32_t>(least(base + n, coded.end));
    if (base < coded.first || base >= end) return {0, 0};
    return {(base - coded.first) / kTile, (end - base + kTile - 1) / kTile};
  }
  // Rows of the run that a side's pages hold.
  static int32_t rows_of(const SideArgs& side, CodedRun pages, int32_t n) {
    if (pages.n == 0) return 0;
    const int32_t last = side.pages[pages.first + pages.n - 1].rows;
    return static_cast<int32_t>(least(n, (pages.n - 1) * kTile + last));
  }

  // What is read after each of `pages`: pages of the same side, then those of the other.
  static StripRun look_ahead(const SideArgs& side, CodedRun pages, const SideArgs& other,
                             CodedRun next) {
    StripRun ahead = {};
    for (int32_t p = 0; p < pages.n; ++p) {
      const int32_t bytes = side.pages[pages.first + p].bytes;
      const auto distance =
          static_cast<int32_t>(least(kRunPages, (kAheadBytes + bytes - 1) / bytes));
      const int32_t at = p + distance;
      CodesAhead& codes = ahead.codes_ahead[p];
      if (at < pages.n) {
        codes.soon = codes_of(side, pages.first + at);
      } else if (at - pages.n < next.n) {
        codes.soon = codes_of(other, next.first + at - pages.n);
      }
      const int32_t later = pages.first + p + kRunPages;
      if (later < side.n_pages) codes.later = codes_of(side, later);
      if (p >= next.n) continue;
      const PageView& page = other.pages[next.first + p];
      ahead.params_ahead[p] = page.data;
      ahead.params_side[p] = other.strips + page.basis;
    }
    return ahead;
  }
  // What nothing before the first run asks for: the parameters of its keys, and as many codes as
  // are read before what is asked for meanwhile arrives.
  void ask_first(const Run& run) const {
    constexpr int32_t kCodePages = 2;
    StripRun first = {};
    for (int32_t p = 0; p < run.keys.n; ++p) {
      const PageView& page = chunk_.k.pages[run.keys.first + p];
      first.params_ahead[first.n_pages] = page.data;
      first.params_side[first.n_pages++] = chunk_.k.strips + page.basis;
      const std::byte* codes = codes_of(chunk_.k, run.keys.first + p);
      const std::byte* end = page.data + page.bytes;
      for (; p < kCodePages && codes < end; codes += 64) prefetch_shared(codes);
    }
    for (int32_t p = 0; p < first.n_pages; ++p) ask_params(first, p);
  }
  static const std::byte* codes_of(const SideArgs& side, int32_t page) {
    const PageView& view = side.pages[page];
    return view.data + side.strips[view.basis].code_offset;
  }

  void score(const Run& run) {
    const StripRun ahead = look_ahead(chunk_.k, run.keys, chunk_.v, run.values);
    score_coded(&work_.keys, run.keys, ahead, work_.scores);
    for (int32_t done = rows_of(chunk_.k, run.keys, run.n); done < run.n;) {
      const RowRun rows = key_rows_.read(run.base + done, run.n - done, work_.decoded, kTile);
      score_row_run(state_, rows, chunk_.k.width, work_.scores + done, kRunStride, {});
      done += rows.rows;
    }
  }

  // Scores become weights, at least up to the end of the run's last page.
  void weigh(const Run& run) {
    const auto n = static_cast<int32_t>(round_up(run.n, kTile));
    for (int64_t v = 0; v < state_.n_vectors; ++v) {
      float* scores = work_.scores + v * kRunStride;
      if (!limit_scores(chunk_, v, run.base, run.n, scores)) {
        for (int32_t i = 0; i < n; i += kLanes) store(scores + i, zero());
        continue;
      }
      keep_scores(chunk_, v, run.base, run.n, scores);
      for (int64_t i = round_up(run.n, kLanes); i < n; i += kLanes) {
        store(scores + i, set(-INFINITY));
      }
      // Weights that are rounded to one plane of int8 need no better exponentials.
      is_fine_ ? weigh_whole<exp2>(v, n, scores) : weigh_whole<exp2_rough>(v, n, scores);
    }
  }

  // Scores of one vector against n rows, whole tiles, to weights, in chains that do not wait for
  // one another.
  template <F32 (*kExp2)(F32)>
  void weigh_whole(int64_t v, int32_t n, float* scores) {
    static_assert(kTile % (4 * kLanes) == 0);
    F32 top[4] = {load(scores), load(scores + kLanes), load(scores + 2 * kLanes),
                  load(scores + 3 * kLanes)};
    for (int32_t i = 4 * kLanes; i < n; i += 4 * kLanes) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) top[c] = max(top[c], load(scores + i + c * kLanes));
    }
    const F32 most = max(max(top[0], top[1]), max(top[2], top[3]));
    if (any(less(set(state_.unit[v] + kUnitSlack), most))) raise_unit(state_, v, most);
    const F32 unit = set(state_.unit[v]);
    F32 total[4] = {zero(), zero(), zero(), zero()};
    for (int32_t i = 0; i < n; i += 4 * kLanes) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        float* at = scores + i + c * kLanes;
        const F32 p = kExp2(load(at) - unit);
        store(at, p);
        total[c] = total[c] + p;
      }
    }
    float* weight = state_.weight + v * kLanes;
    store(weight, load(weight) + ((total[0] + total[1]) + (total[2] + total[3])));
  }

  // `next` is what is read after it.
  void add(const Run& run, const Run& next) {
    const int32_t coded = rows_of(chunk_.v, run.values, run.n);
    for (int32_t done = coded; done < run.n;) {
      const RowRun rows = value_rows_.read(run.base + done, run.n - done, work_.decoded, kTile);
      add_row_run(state_, rows, chunk_.v.width, work_.scores + done, kRunStride, {});
      done += rows.rows;
    }
    // Pages see no weights of other rows.
    for (int64_t v = 0; v < state_.n_vectors; ++v) {
      for (int32_t i = coded; i < run.values.n * kTile; ++i) work_.scores[v * kRunStride + i] = 0;
    }
    const StripRun ahead = look_ahead(chunk_.v, run.values, chunk_.k, next.keys);
    add_coded(&work_.values, state_, run.values, ahead, work_.scores);
  }

  const AttendChunk& chunk_;
  const AttendState& state_;
  StripWork& work_;
  SideReader key_rows_;
  SideReader value_rows_;
  bool is_fine_;
};

}  // namespace

// The work of one thread and, behind it, its memory.
static StripWork* carve_work(Carver& carver, const AttendChunk& chunk, const AttendState& state) {
  const int key_dim = chunk.k.width;
  const int value_dim = chunk.v.width;
  const int widest = key_dim > value_dim ? key_dim : value_dim;
  const auto take = [&](size_t bytes) {
    return carver.take<std::byte>(static_cast<int64_t>(bytes));
  };
  auto* work = carver.take<StripWork>(1);
  const bool counts = carver.counts_only();
  if (!counts && chunk.prepared) {
    resume_coded(chunk, &work->keys, &work->values);
    return work;
  }
  StripWork made = {};
  made.scores = carver.take<float>(kMaxStripVectors * kRunStride);
  made.decoded = carver.take<float>(kTile * int64_t{widest});
  std::byte* keys = take(coded_keys_bytes(key_dim));
  std::byte* values = take(coded_values_bytes(value_dim));
  made.rows = take(attend_rows_scratch(row_numbers(chunk.k), row_numbers(chunk.v)));
  made.lifting = take(lift_scratch(row_numbers(chunk)));
  if (counts) return nullptr;
  made.keys = start_coded_keys(chunk, state, keys);
  made.values = start_coded_values(chunk, values);
  *work = made;
  return work;
}

size_t attend_strips_scratch(int key_dim, int value_dim) {
  AttendChunk chunk = {};
  chunk.k.width = key_dim;
  chunk.v.width = value_dim;
  Carver carver(nullptr);
  carve_work(carver, chunk, {});
  return carver.size();
}

void attend_strips(const AttendChunk& chunk, AttendState state, int32_t first, int32_t end,
                   std::byte* scratch) {
  Carver carver(scratch);
  StripWork* work = carve_work(carver, chunk, state);
  state.coded = work->values.sums;
  state.coded_stride = work->values.stride;
  keep_sums(chunk, state, &work->values);
  // Where one side alone is coded the other's rows are an empty range at 0.
  const CodedRows k = coded_rows(chunk.k);
  const CodedRows v = coded_rows(chunk.v);
  const int32_t from = k.first > v.first ? k.first : v.first;
  const int32_t to = k.end > v.end ? k.end : v.end;
  const auto begin = static_cast<int32_t>(least(from > first ? from : first, end));
  const auto stop = static_cast<int32_t>(least(to > begin ? to : begin, end));
  if (first < begin) attend_rows(chunk, state, first, begin, work->rows);
  if (begin < stop) StripReader(chunk, state, work).attend(begin, stop);
  if (stop < end) attend_rows(chunk, state, stop, end, work->rows);
  // Last of all, as where parts are merged.
  finish_coded(&work->values, state);
}

}  // namespace kve::KVE_ISA
