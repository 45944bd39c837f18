// Exact attention over a cache of any codec: tiles of kAttendTile rows are decoded to f32, scores
// and outputs are f32 products, and the softmax runs online (FlashAttention, arXiv:2205.14135).
#include <math.h>
#include <string.h>

#include "kernels/cpu/isa/cache_rows.h"
#include "kernels/cpu/isa/isa.h"
#include "simd/math.h"

namespace kve::KVE_ISA {

constexpr int kTile = kAttendTile;

namespace {

// Reads rows of one side in order: pages first, then the tail.
struct Reader {
  const SideArgs& side;
  int32_t page = 0;
  int32_t page_start = 0;  // cache row of the page's first row

  // Rows [first, first + n), in dst [n, stride]; `first` does not decrease from call to call.
  void read(int32_t first, int32_t n, float* dst, int64_t stride) {
    while (n > 0) {
      while (page < side.n_pages && first >= page_start + side.pages[page].rows) {
        page_start += side.pages[page++].rows;
      }
      const int32_t within = first - page_start;
      int32_t count = n;
      if (page < side.n_pages) {
        count = static_cast<int32_t>(least(n, side.pages[page].rows - within));
        decode_page(*side.codec, side.group, side.width, side.pages[page].data, within, count, dst,
                    stride);
      } else {
        const uint16_t* tail = side.tail + int64_t{within} * side.width;
        for (int r = 0; r < count; ++r) {
          decode_half_row(tail + int64_t{r} * side.width, side.width, dst + r * stride);
        }
      }
      first += count;
      n -= count;
      dst += count * stride;
    }
  }
};

struct Workspace {
  int64_t key_stride;
  int64_t value_stride;
  float* queries;     // [vectors][key_stride], scaled
  float* keys;        // [kLanes][key_stride]
  float* transposed;  // [key_stride][kTile]
  float* values;      // [kTile][value_stride]
  float* scores;      // [vectors][kTile]
  float* sums;        // [vectors][value_stride]
  float* largest;     // [vectors]
  float* weight;      // [vectors]: sum of exp(score - largest)
  size_t size;

  Workspace(std::byte* data, int key_dim, int value_dim) {
    key_stride = round_up(key_dim, kLanes);
    value_stride = round_up(value_dim, kLanes);
    Carver carver(data);
    queries = carver.take<float>(kMaxAttendVectors * key_stride);
    keys = carver.take<float>(kLanes * key_stride);
    transposed = carver.take<float>(key_stride * kTile);
    values = carver.take<float>(kTile * value_stride);
    scores = carver.take<float>(kMaxAttendVectors * kTile);
    sums = carver.take<float>(kMaxAttendVectors * value_stride);
    largest = carver.take<float>(kMaxAttendVectors);
    weight = carver.take<float>(kMaxAttendVectors);
    size = carver.size();
  }
};

}  // namespace

size_t attend_scratch(int key_dim, int value_dim) {
  return Workspace(nullptr, key_dim, value_dim).size;
}

int attend_value_stride(int value_dim) { return static_cast<int>(round_up(value_dim, kLanes)); }

static void start(const AttendChunk& chunk, const Workspace& work) {
  const int key_dim = chunk.k.width;
  const int64_t n = int64_t{chunk.n_tokens} * chunk.n_group;
  for (int64_t i = 0; i < n; ++i) {
    const float* q =
        chunk.q + i / chunk.n_group * chunk.q_stride + i % chunk.n_group * int64_t{key_dim};
    float* to = work.queries + i * work.key_stride;
    memcpy(to, q, sizeof(float) * static_cast<size_t>(key_dim));
    scale(to, chunk.scale, key_dim);
    work.largest[i] = -INFINITY;
    work.weight[i] = 0;
  }
  memset(work.sums, 0, sizeof(float) * static_cast<size_t>(n * work.value_stride));
}

// Reads rows [base, base + n) of the keys, a few at a time, so that they are transposed from the
// nearest cache.
static void load_keys(const Workspace& work, Reader& keys, int32_t base, int32_t n) {
  for (int32_t r = 0; r < n; r += kLanes) {
    keys.read(base + r, static_cast<int32_t>(least(n - r, kLanes)), work.keys, work.key_stride);
    for (int64_t d = 0; d < work.key_stride; d += kLanes) {
      F32 square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load(work.keys + i * work.key_stride + d);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(work.transposed + (d + i) * kTile + r, square[i]);
    }
  }
}

// Adds the weighted rows [base, base + n) of the values. With few vectors, reading the rows is what
// takes time, and they should be used while they are in the nearest cache.
static void add_values(const Workspace& work, Reader& values, int32_t base, int32_t n,
                       int64_t vectors, int value_dim) {
  constexpr int64_t kFewVectors = 16;
  const int32_t step = vectors <= kFewVectors ? 16 : kTile;
  for (int32_t r = 0; r < n; r += step) {
    const int32_t count = static_cast<int32_t>(least(n - r, step));
    values.read(base + r, count, work.values, work.value_stride);
    gemm(vectors, value_dim, count, work.scores + r, kTile, work.values, work.value_stride,
         work.sums, work.value_stride, true);
  }
}

// Softcap and alibi of n scores; `distance` is key position minus query position of the first.
static void adjust(const AttendChunk& chunk, float* scores, int32_t n, int group_index,
                   int32_t distance) {
  if (chunk.softcap > 0) softcap(chunk.softcap, scores, n);
  if (chunk.alibi != nullptr) {
    const float slope = chunk.alibi[group_index];
    for (int32_t i = 0; i < n; ++i) scores[i] += slope * static_cast<float>(distance + i);
  }
}

// Scores to weights relative to the running maximum, which may grow; what was summed under the
// old maximum is scaled down.
static void soften(float* scores, int32_t n, float* largest, float* weight, float* sums,
                   int64_t value_stride) {
  F32 top = set(*largest);
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max(top, load(scores + i));
  float peak = max_of(top);
  for (; i < n; ++i) peak = scores[i] > peak ? scores[i] : peak;
  if (peak > *largest) {
    const float factor = sum(exp(set(*largest - peak))) / kLanes;
    scale(sums, factor, value_stride);
    *weight *= factor;
    *largest = peak;
  }
  F32 total = zero();
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const F32 p = exp(load(scores + i) - set(peak));
    store(scores + i, p);
    total = total + p;
  }
  if (i < n) {
    // Lanes past the end are zero scores; they must not count.
    store_n(scores + i, exp(load_n(scores + i, n - i) - set(peak)), n - i);
    total = total + load_n(scores + i, n - i);
  }
  *weight += sum(total);
}

// Cache rows [base, base + n) that the query at `pos` sees, relative to base.
struct Visible {
  int32_t first;
  int32_t end;
};
static Visible visible_rows(const AttendChunk& chunk, int32_t pos, int32_t base, int32_t n) {
  const int32_t own = pos - chunk.first_pos - base;  // the row of the query itself
  const int32_t end = own + 1 < n ? own + 1 : n;
  const int32_t oldest = chunk.window > 0 ? own - chunk.window + 1 : 0;
  return {oldest > 0 ? oldest : 0, end};
}

static void weigh_tile(const AttendChunk& chunk, const Workspace& work, int32_t base, int32_t n) {
  for (int32_t t = 0; t < chunk.n_tokens; ++t) {
    const int32_t pos = chunk.query_pos + t;
    const Visible seen = visible_rows(chunk, pos, base, n);
    for (int g = 0; g < chunk.n_group; ++g) {
      const int64_t i = int64_t{t} * chunk.n_group + g;
      float* scores = work.scores + i * kTile;
      for (int32_t c = 0; c < least(seen.first, n); ++c) scores[c] = 0;
      for (int32_t c = seen.end > 0 ? seen.end : 0; c < n; ++c) scores[c] = 0;
      const int32_t count = seen.end - seen.first;
      if (count <= 0) continue;
      adjust(chunk, scores + seen.first, count, g, chunk.first_pos + base + seen.first - pos);
      soften(scores + seen.first, count, work.largest + i, work.weight + i,
             work.sums + i * work.value_stride, work.value_stride);
    }
  }
}

static void finish(const AttendChunk& chunk, const Workspace& work) {
  const int64_t n = int64_t{chunk.n_tokens} * chunk.n_group;
  if (chunk.out == nullptr) {
    memcpy(chunk.partial, work.sums, sizeof(float) * static_cast<size_t>(n * work.value_stride));
    float* tail = chunk.partial + n * work.value_stride;
    memcpy(tail, work.largest, sizeof(float) * static_cast<size_t>(n));
    memcpy(tail + n, work.weight, sizeof(float) * static_cast<size_t>(n));
    return;
  }
  const int value_dim = chunk.v.width;
  for (int64_t i = 0; i < n; ++i) {
    float* out =
        chunk.out + i / chunk.n_group * chunk.out_stride + i % chunk.n_group * int64_t{value_dim};
    memcpy(out, work.sums + i * work.value_stride, sizeof(float) * static_cast<size_t>(value_dim));
    scale(out, work.weight[i] == 0 ? 0.0f : 1.0f / work.weight[i], value_dim);
  }
}

void attend(const AttendChunk& chunk) {
  const Workspace work(chunk.scratch, chunk.k.width, chunk.v.width);
  const int64_t vectors = int64_t{chunk.n_tokens} * chunk.n_group;
  start(chunk, work);
  const int32_t last = chunk.query_pos + chunk.n_tokens - 1 - chunk.first_pos;
  const int32_t end = last + 1 < chunk.end_row ? last + 1 : chunk.end_row;
  int32_t first = chunk.first_row;
  if (chunk.window > 0) {
    const int32_t oldest = chunk.query_pos - chunk.window + 1 - chunk.first_pos;
    if (oldest > first) first = oldest;
  }
  Reader keys{chunk.k};
  Reader values{chunk.v};
  for (int32_t base = first / kTile * kTile; base < end; base += kTile) {
    const int32_t n = static_cast<int32_t>(least(end - base, kTile));
    load_keys(work, keys, base, n);
    gemm(vectors, n, chunk.k.width, work.queries, work.key_stride, work.transposed, kTile,
         work.scores, kTile, false);
    weigh_tile(chunk, work, base, n);
    add_values(work, values, base, n, vectors, chunk.v.width);
  }
  finish(chunk, work);
}

static void merge_vector(const AttendMerge& merge, int64_t vector, float* out) {
  const int64_t n_vectors = int64_t{merge.n_tokens} * merge.n_group;
  const int64_t value_stride = round_up(merge.value_dim, kLanes);
  const float* largest = merge.partial + n_vectors * value_stride + vector;
  const float* weight = largest + n_vectors;
  float peak = -INFINITY;
  for (int64_t p = 0; p < merge.n_parts; ++p) {
    const float value = largest[p * merge.part_stride];
    peak = value > peak ? value : peak;
  }
  memset(out, 0, sizeof(float) * static_cast<size_t>(merge.value_dim));
  float total = 0;
  for (int64_t p = 0; p < merge.n_parts; ++p) {
    const int64_t part = p * merge.part_stride;
    if (weight[part] == 0) continue;
    const float factor = sum(exp(set(largest[part] - peak))) / kLanes;
    const float* sums = merge.partial + part + vector * value_stride;
    for (int64_t d = 0; d < merge.value_dim; ++d) out[d] += factor * sums[d];
    total += factor * weight[part];
  }
  scale(out, total == 0 ? 0.0f : 1.0f / total, merge.value_dim);
}

void attend_merge(const AttendMerge& merge) {
  for (int64_t t = 0; t < merge.n_tokens; ++t) {
    for (int64_t g = 0; g < merge.n_group; ++g) {
      merge_vector(merge, t * merge.n_group + g,
                   merge.out + t * merge.out_stride + g * merge.value_dim);
    }
  }
}

}  // namespace kve::KVE_ISA
