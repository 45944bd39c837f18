// Quest (arXiv 2406.10774): a query reads the pages that may matter to it, and everything stays.
//
// A page is as good as the highest score that a key could have with a query, were each of its
// channels the best of the page: sum_c max(q_c * least_c, q_c * most_c). That is the product of the
// positive part of the query with the largest and of its negative part with the smallest, so that
// all pages are two rows of a matrix. Query heads that share a kv head read the same pages, by the
// mean of their scores: the original has a query head for every kv head.
//
// Prompts are read in full, as are a model's first layers and those with a window. Afterwards every
// query of a short pass has pages of its own, and what it reads does not depend on what else is in
// the pass: pages count from where they are whole without its own row.
#include <algorithm>
#include <functional>

#include "base/error.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_state.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

constexpr int kManyRows = 4 * kPageTokens;  // of which bounds are worth waking threads

int padded(int n) { return (n + 15) / 16 * 16; }

template <class T>
void resize(CountedVector<T>* memory, size_t n) {
  if (n > memory->capacity()) {
    memory->clear();
    memory->reserve(n + n / 8);
  }
  memory->resize(n);
}

// Rows [begin, end) are hidden.
void hide(int begin, int end, uint64_t* words) {
  while (begin < end) {
    const int from = begin % 64;
    const int n = std::min(end - begin, 64 - from);
    const uint64_t bits = n == 64 ? ~uint64_t{0} : ((uint64_t{1} << n) - 1) << from;
    words[begin / 64] |= bits;
    begin += n;
  }
}

// The positive parts of `group` queries, added up, then the negative ones: [2 * dim].
void split_signs(const float* q, int group, int dim, float* out) {
  std::fill_n(out, 2 * dim, 0.0f);
  for (int g = 0; g < group; ++g) {
    const float* query = q + static_cast<ptrdiff_t>(g) * dim;
    for (int c = 0; c < dim; ++c) {
      out[c] += std::max(query[c], 0.0f);
      out[dim + c] += std::min(query[c], 0.0f);
    }
  }
}

}  // namespace

ShownPages::ShownPages(const std::shared_ptr<MemoryCounter>& counter)
    : views(CountedAllocator<HeadView>(counter)),
      dead(CountedAllocator<uint64_t>(counter)),
      vectors(CountedAllocator<float>(counter)),
      scores(CountedAllocator<float>(counter)),
      ranked(CountedAllocator<float>(counter)) {}

void ShownPages::resize(int n_queries, int n_heads, int n_rows, int n_pages, int bounds_width) {
  const auto n = static_cast<size_t>(n_queries) * static_cast<size_t>(n_heads);
  words = (n_rows + 63) / 64;
  scores_stride = padded(n_pages);
  vector_stride = padded(bounds_width);
  kve::resize(&views, n);
  kve::resize(&dead, n * static_cast<size_t>(words));
  kve::resize(&vectors, n * static_cast<size_t>(vector_stride));
  kve::resize(&scores, n * static_cast<size_t>(scores_stride));
  kve::resize(&ranked, n * static_cast<size_t>(scores_stride));
}

size_t ShownPages::bytes() const {
  return views.capacity() * sizeof(HeadView) + dead.capacity() * sizeof(uint64_t) +
         (vectors.capacity() + scores.capacity() + ranked.capacity()) * sizeof(float);
}

void KvCache::State::make_bounds() {
  const SelectorSpec& quest = spec.selector;
  if (!quest.reads_some()) return;
  for (size_t i = static_cast<size_t>(quest.dense); i < layers.size(); ++i) {
    const LayerShape& shape = shapes[i];
    if (shape.window > 0) continue;
    const auto n = static_cast<size_t>(shape.n_kv_heads);
    const PageGrid grid(quest.page, layers[i].sinks);
    layers[i].bounds.assign(n, HeadBounds(grid, shape.key_dim, counter));
    bounds_scratch.resize(std::max(bounds_scratch.size(), n));
  }
}

// Of the pages that the n rows which were just appended fill.
void KvCache::State::extend_bounds(Backend& backend, LayerCache* layer, int n) {
  if (layer->bounds.empty()) return;
  const int n_rows = layer->rows(0);
  if (layer->bounds[0].grid().whole(n_rows) == layer->bounds[0].pages()) return;
  for (HeadBounds& bounds : layer->bounds) bounds.reserve(n_rows);
  bounds_scratch.resize(std::max(bounds_scratch.size(), layer->bounds.size()));
  const auto extend = [&](int64_t h) {
    const auto head = static_cast<size_t>(h);
    const int per_side = layer->keys[0].setup().n_heads;
    layer->bounds[head].extend(layer->keys[head / static_cast<size_t>(per_side)],
                               static_cast<int>(h) % per_side,
                               layer->positions(static_cast<int>(h)), &bounds_scratch[head]);
  };
  const auto n_heads = static_cast<int64_t>(layer->bounds.size());
  if (n >= kManyRows) {
    backend.pool().parallel(n_heads, extend);
  } else {
    for (int64_t h = 0; h < n_heads; ++h) extend(h);
  }
}

int KvCache::State::tokens_shown(int n_rows) const {
  const SelectorSpec& quest = spec.selector;
  if (quest.tokens > 0) return quest.tokens;
  return std::max(1, static_cast<int>(n_rows * quest.share));
}

bool KvCache::State::shows_some(const LayerCache& layer, int n_queries) const {
  if (layer.bounds.empty() || prompt_tokens == 0 || n_queries > kFewRows) return false;
  const int n_rows = layer.rows(0);
  for (int seen = n_rows - n_queries + 1; seen <= n_rows; ++seen) {
    if (tokens_shown(seen) < seen) return true;
  }
  return false;
}

// What one query sees of one kv head.
void KvCache::State::show_pages(const Backend& backend, const AttendParams& params,
                                const LayerCache& layer, ConstMat q, int query, int kv_head) {
  const HeadBounds& bounds = layer.bounds[static_cast<size_t>(kv_head)];
  const PageGrid& grid = bounds.grid();
  const int n_rows = layer.rows(0);
  const int own = n_rows - static_cast<int>(q.rows) + query;  // the row of the query
  const auto at = static_cast<size_t>(query) * layer.bounds.size() + static_cast<size_t>(kv_head);
  HeadView& view = shown.views[at];
  view = layer.views[static_cast<size_t>(kv_head)];
  const int budget = tokens_shown(own + 1);
  if (budget > own) return;
  // The page of the query itself is always seen, and those of recent tokens.
  const int whole = grid.whole(own);
  const int judged = std::min(whole, grid.whole(std::max(0, own + 1 - spec.selector.recent)));
  const int kept = std::max(0, budget / grid.size - 1 - (whole - judged));
  if (kept >= judged) return;

  float* vectors = shown.vectors.data() + at * static_cast<size_t>(shown.vector_stride);
  float* scores = shown.scores.data() + at * static_cast<size_t>(shown.scores_stride);
  float* ranked = shown.ranked.data() + at * static_cast<size_t>(shown.scores_stride);
  const int group = params.n_heads / params.n_kv_heads;
  split_signs(q.row(query) + int64_t{kv_head} * group * params.key_dim, group, params.key_dim,
              vectors);
  backend.dot_halves({.rows = bounds.data(),
                      .n = judged,
                      .width = bounds.width(),
                      .vectors = vectors,
                      .vector_stride = shown.vector_stride,
                      .n_vectors = 1,
                      .out = scores,
                      .out_stride = shown.scores_stride});
  // What is not a number, of queries that are none, orders as the lowest.
  for (int p = 0; p < judged; ++p) {
    if (!(scores[p] >= -kAlwaysKept)) scores[p] = -kAlwaysKept;
  }
  float least = kAlwaysKept;
  int as_good = 0;  // of pages as good as the last one, the older
  if (kept > 0) {
    std::copy_n(scores, judged, ranked);
    std::nth_element(ranked, ranked + kept - 1, ranked + judged, std::greater());
    least = ranked[kept - 1];
    as_good = kept - static_cast<int>(std::count_if(scores, scores + judged,
                                                    [&](float score) { return score > least; }));
  }
  uint64_t* dead = shown.dead.data() + at * static_cast<size_t>(shown.words);
  std::fill_n(dead, shown.words, uint64_t{0});
  for (int p = 0; p < judged; ++p) {
    const bool seen = kept > 0 && (scores[p] > least || (scores[p] == least && as_good-- > 0));
    if (!seen) hide(grid.begin(p), grid.end(p), dead);
  }
  view.dead = dead;
}

void KvCache::plan_attention(Backend& backend, const AttendParams& params, int layer, ConstMat q,
                             Mat out, std::vector<AttendTask>* tasks) {
  State& s = *state_;
  LayerCache& cache = s.layers.at(static_cast<size_t>(layer));
  const int n = static_cast<int>(q.rows);
  const int first_pos = next_position() + cache.appended - n;
  if (!s.shows_some(cache, n)) {
    tasks->push_back({q, cache.views, first_pos, out, log_sums(layer, n, params.n_heads),
                      s.pending_mass(&cache, n)});
    return;
  }
  backend.fetch(q);
  const size_t n_heads = cache.bounds.size();
  const auto make_room = [&] {
    s.shown.resize(n, static_cast<int>(n_heads), cache.rows(0), cache.bounds[0].pages(),
                   cache.bounds[0].width());
  };
  s.with_room(backend, make_room, [] {});
  backend.pool().parallel(static_cast<int64_t>(n) * static_cast<int64_t>(n_heads), [&](int64_t i) {
    const auto heads = static_cast<int64_t>(n_heads);
    s.show_pages(backend, params, cache, q, static_cast<int>(i / heads),
                 static_cast<int>(i % heads));
  });
  const std::span<const HeadView> views = s.shown.views;
  for (int i = 0; i < n; ++i) {
    tasks->push_back({q.block(i, 1), views.subspan(static_cast<size_t>(i) * n_heads, n_heads),
                      first_pos + i, out.block(i, 1), nullptr});
  }
}

}  // namespace kve
