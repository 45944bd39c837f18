#include <string.h>

#include "kernels/cpu/isa/cache_rows.h"
#include "kernels/cpu/isa/coded_pages.h"
#include "kernels/cpu/isa/strip_params.h"

namespace kve::KVE_ISA {

// Up to so many bits, the rounding of queries to bf16 before they are projected is far below that
// of the keys.
constexpr int32_t kMostRoundedBits = 4;

static CodedKeys carve_coded_keys(Carver& carver, int64_t key_dim, int64_t n_vectors) {
  CodedKeys keys = {};
  const auto take = [&](size_t bytes) {
    return carver.take<std::byte>(static_cast<int64_t>(bytes));
  };
  keys.stride = round_up(key_dim, 16);
  keys.n_vectors = n_vectors;
  keys.basis = -1;
  keys.projected = carver.take<float>(kProjectedPages * n_vectors * keys.stride);
  keys.page_queries = carver.take<float>(kRunPages * n_vectors * keys.stride);
  keys.strip_memory = take(most_key_strips_bytes(key_dim, n_vectors));
  keys.projection_memory = take(projection_bytes(key_dim, kProjectedPages, n_vectors));
  return keys;
}

size_t coded_keys_bytes(int key_dim) {
  Carver carver(nullptr);
  carve_coded_keys(carver, key_dim, kMaxStripVectors);
  return carver.size();
}

CodedKeys start_coded_keys(const AttendChunk& chunk, const AttendState& state, std::byte* memory) {
  Carver carver(memory);
  CodedKeys keys = carve_coded_keys(carver, chunk.k.width, state.n_vectors);
  keys.side = &chunk.k;
  keys.first_pos = chunk.first_pos;
  keys.queries = state.queries;
  keys.query_stride = state.key_stride;
  return keys;
}

static bool is_anchored(const CodedKeys& keys) {
  return keys.side->bases != nullptr && keys.side->bases[keys.basis].anchor != 0;
}

// Queries that are the same for all pages of a basis; for anchored keys there are none.
static void set_basis(CodedKeys* keys, int32_t basis) {
  const SideArgs& side = *keys->side;
  const StripSide& strips = side.strips[basis];
  keys->basis = basis;
  keys->turned = {0, 0};
  keys->strips = plan_keys(strips, keys->n_vectors, keys->strip_memory);
  if (side.bases == nullptr) {
    keys->coefficients = {keys->queries, keys->query_stride, 0};
  } else {
    const int64_t pages = is_anchored(*keys) ? kProjectedPages : 1;
    const int64_t floats = pages * keys->n_vectors * keys->stride;
    memset(keys->projected, 0, sizeof(float) * static_cast<size_t>(floats));
    keys->projection =
        plan_projection(side.bases[basis], keys->queries, keys->query_stride, keys->n_vectors,
                        pages, strips.bits <= kMostRoundedBits, keys->projection_memory);
    keys->coefficients = {keys->projected, keys->stride, keys->n_vectors * keys->stride};
    if (is_anchored(*keys)) return;
    keys->coefficients.page_stride = 0;
    project_pages(keys->projection, nullptr, 1, keys->projected, keys->stride);
  }
  if (strips.factors != StripFactors::scale_channels) set_queries(keys->strips, keys->coefficients);
}

// Queries rotated back to the anchor of each page, and projected: of the page `first` and, as far
// as they have the same basis, of those after it, which the next run or the next chunk reads.
static void project_from(CodedKeys* keys, int32_t first) {
  const SideArgs& side = *keys->side;
  const float* angles[kProjectedPages];
  int32_t n = 0;
  for (; n < kProjectedPages && first + n < side.n_pages; ++n) {
    if (side.pages[first + n].basis != keys->basis) break;
    const int32_t row = side.sink_rows + (first + n) * kTile;
    angles[n] = angles_at(side, side.bases[keys->basis], {row, keys->first_pos});
  }
  project_pages(keys->projection, angles, n, keys->projected, keys->stride);
  keys->turned = {first, n};
}

static void project_run(CodedKeys* keys, CodedRun pages) {
  const int32_t before = pages.first - keys->turned.first;
  const bool done = before >= 0 && before + pages.n <= keys->turned.n;
  if (!done) project_from(keys, pages.first);
  const int64_t stride = keys->coefficients.page_stride;
  keys->coefficients.vectors = keys->projected + (pages.first - keys->turned.first) * stride;
}

// Queries times the channels of each page.
static StripQueries multiply_channels(const CodedKeys& keys, CodedRun pages) {
  const int64_t width = keys.side->n_channels;
  const StripQueries& from = keys.coefficients;
  const StripQueries to = {keys.page_queries, keys.stride, keys.n_vectors * keys.stride};
  for (int32_t p = 0; p < pages.n; ++p) {
    const uint16_t* channels = factors_of(*keys.side, pages.first + p);
    for (int64_t v = 0; v < keys.n_vectors; ++v) {
      const float* x = from.vectors + p * from.page_stride + v * from.stride;
      float* out = keys.page_queries + p * to.page_stride + v * to.stride;
      for (int64_t c = 0; c < round_up(width, 16); c += kLanes) {
        const int64_t n = least(kLanes, width - c);
        store(out + c, n > 0 ? load(x + c) * load_f16_n(channels + c, n) : zero());
      }
    }
  }
  return to;
}

// Adds the product of the queries and what every channel of a page adds.
static void add_channels(const CodedKeys& keys, CodedRun pages, float* scores) {
  const int64_t width = keys.side->n_channels;
  const StripQueries& queries = keys.coefficients;
  for (int32_t p = 0; p < pages.n; ++p) {
    const uint16_t* channels = factors_of(*keys.side, pages.first + p);
    for (int64_t v = 0; v < keys.n_vectors; ++v) {
      const float* x = queries.vectors + p * queries.page_stride + v * queries.stride;
      F32 total = zero();
      for (int64_t c = 0; c < width; c += kLanes) {
        total = fma(load(x + c), load_f16_n(channels + c, least(kLanes, width - c)), total);
      }
      const F32 added = set(sum(total));
      float* to = scores + v * kRunStride + p * kStripTokens;
      for (int64_t t = 0; t < kStripTokens; t += kLanes) store(to + t, load(to + t) + added);
    }
  }
}

// Pages of one basis.
static void score_basis(CodedKeys* keys, CodedRun pages, const StripRun& run, float* scores) {
  const SideArgs& side = *keys->side;
  const int32_t basis = side.pages[pages.first].basis;
  if (basis != keys->basis) set_basis(keys, basis);
  if (is_anchored(*keys)) project_run(keys, pages);
  const StripFactors factors = side.strips[basis].factors;
  const bool multiplied = factors == StripFactors::scale_channels;
  const StripQueries queries = multiplied ? multiply_channels(*keys, pages) : keys->coefficients;
  score_run(keys->strips, queries, run, scores);
  if (factors == StripFactors::add_channels) add_channels(*keys, pages, scores);
  if (factors == StripFactors::scale_tokens) scale_tokens(side, pages, keys->n_vectors, scores);
}

void score_coded(CodedKeys* keys, CodedRun pages, const StripRun& ahead, float* scores) {
  const PageView* views = keys->side->pages + pages.first;
  for (int32_t p = 0; p < pages.n;) {
    StripRun run = {};
    const int32_t first = p;
    for (; p < pages.n && views[p].basis == views[first].basis; ++p) {
      put_page(&run, views[p].data, views[p].rows, ahead, p);
    }
    score_basis(keys, {pages.first + first, run.n_pages}, run, scores + first * kStripTokens);
  }
}

}  // namespace kve::KVE_ISA
