// Exact attention over a cache of any codec: tiles of kAttendTile rows are decoded to f32, scores
// and outputs are f32 products, and the softmax runs online (FlashAttention, arXiv:2205.14135).
#include <math.h>
#include <string.h>

#include "formats/cache/bf16.h"
#include "formats/cache/int_group.h"
#include "formats/cache/q4_0.h"
#include "formats/cache/q8_0.h"
#include "kernels/cpu/isa/isa.h"
#include "simd/math.h"

namespace kve::KVE_ISA {

constexpr int kTile = kAttendTile;

template <class Tag>
static void decode_rows(Tag tag, const SideArgs& side, const std::byte* page, int first, int n,
                        float* dst, int64_t stride) {
  for (int r = 0; r < n; ++r) {
    decode_row(tag, page, first + r, side.width, side.group, dst + r * stride);
  }
}

static void decode_halves(const uint16_t* src, int width, int n, float* dst, int64_t stride) {
  for (int r = 0; r < n; ++r) half_to_f32(src + int64_t{r} * width, dst + r * stride, width);
}

static void decode_page(const SideArgs& side, const std::byte* page, int first, int n, float* dst,
                        int64_t stride) {
  switch (side.codec->id) {
    case CodecId::f16:
      return decode_halves(reinterpret_cast<const uint16_t*>(page) + int64_t{first} * side.width,
                           side.width, n, dst, stride);
    case CodecId::bf16:
      return decode_rows(Bf16Codec{}, side, page, first, n, dst, stride);
    case CodecId::q8_0:
      return decode_rows(Q8_0Codec{}, side, page, first, n, dst, stride);
    case CodecId::q4_0:
      return decode_rows(Q4_0Codec{}, side, page, first, n, dst, stride);
    case CodecId::int8:
      return decode_rows(Int8Codec{}, side, page, first, n, dst, stride);
    case CodecId::int4:
      return decode_rows(Int4Codec{}, side, page, first, n, dst, stride);
    default:
      return side.codec->decode(page, first, n, side.width, side.group, dst, stride);
  }
}

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
        decode_page(side, side.pages[page].data, within, count, dst, stride);
      } else {
        decode_halves(side.tail + int64_t{within} * side.width, side.width, count, dst, stride);
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
  float* keys;        // [kTile][key_stride]
  float* transposed;  // [key_stride][kTile]
  float* values;      // [kTile][value_stride]
  float* scores;      // [vectors][kTile]
  float* sums;        // [vectors][value_stride]
  float* largest;     // [vectors]
  float* weight;      // [vectors]: sum of exp(score - largest)
  std::byte* end;

  Workspace(std::byte* data, int key_dim, int value_dim) {
    key_stride = round_up(key_dim, kLanes);
    value_stride = round_up(value_dim, kLanes);
    Carver carver{data};
    queries = carver.take<float>(kMaxAttendVectors * key_stride);
    keys = carver.take<float>(kTile * key_stride);
    transposed = carver.take<float>(key_stride * kTile);
    values = carver.take<float>(kTile * value_stride);
    scores = carver.take<float>(kMaxAttendVectors * kTile);
    sums = carver.take<float>(kMaxAttendVectors * value_stride);
    largest = carver.take<float>(kMaxAttendVectors);
    weight = carver.take<float>(kMaxAttendVectors);
    end = carver.next;
  }
};

size_t attend_scratch(int key_dim, int value_dim) {
  return static_cast<size_t>(Workspace(nullptr, key_dim, value_dim).end -
                             static_cast<std::byte*>(nullptr));
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

static void transpose_keys(const Workspace& work, int32_t n) {
  for (int64_t d = 0; d < work.key_stride; d += kLanes) {
    for (int64_t r = 0; r < n; r += kLanes) {
      F32 square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load(work.keys + (r + i) * work.key_stride + d);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(work.transposed + (d + i) * kTile + r, square[i]);
    }
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
    keys.read(base, n, work.keys, work.key_stride);
    values.read(base, n, work.values, work.value_stride);
    transpose_keys(work, n);
    gemm(vectors, n, chunk.k.width, work.queries, work.key_stride, work.transposed, kTile,
         work.scores, kTile, false);
    weigh_tile(chunk, work, base, n);
    gemm(vectors, chunk.v.width, n, work.scores, kTile, work.values, work.value_stride, work.sums,
         work.value_stride, true);
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
