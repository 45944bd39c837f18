#include "cache/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/free_memory.h"
#include "cache/kv_cache_state.h"

namespace kve {
namespace {

constexpr int kMaxHeads = 1 << 16;
constexpr int kMaxDim = 1 << 16;

void check_range(std::string_view what, size_t layer, int64_t value, int low, int high) {
  if (value < low || value > high) {
    throw ConfigError(message("cache of layer ", layer, ": ", what, ": expected ", low, " to ",
                              high, ", found ", value));
  }
}

// Where the first value of k or v that is not finite stands. `first_pos` is the position of row 0.
std::string locate_not_finite(int layer, int n_heads, int first_pos, ConstMat k, ConstMat v) {
  for (int64_t row = 0; row < k.rows; ++row) {
    for (int side = 0; side < 2 * n_heads; ++side) {
      const bool values = side % 2 != 0;
      const ConstMat& m = values ? v : k;
      const int64_t dim = m.cols / n_heads;
      for (int64_t i = 0; i < dim; ++i) {
        const float value = m.row(row)[side / 2 * dim + i];
        if (std::isfinite(value)) continue;
        return message(side_name(static_cast<size_t>(layer), side / 2, values), ", token ",
                       first_pos + row, ": expected finite values, found ",
                       std::isnan(value) ? "NaN" : "infinity", " in channel ", i);
      }
    }
  }
  return message("layer ", layer, ": the backend refused finite values");
}

// A window layer keeps one window more than it attends to, so that a chat turn can be taken back.
int64_t oldest_kept(int window, int n_tokens) { return int64_t{n_tokens} - 2 * int64_t{window}; }

Sides make_sides(std::span<const SideSetup> setups, const std::shared_ptr<MemoryCounter>& counter) {
  Sides sides{CountedAllocator<SideCache>(counter)};
  sides.reserve(setups.size());
  for (const SideSetup& setup : setups) sides.emplace_back(setup, counter);
  return sides;
}

bool uses_queries(const SideSetup& setup) {
  const ProjectorSpec& projector = setup.spec.projector;
  const bool asks =
      projector.kind == ProjectorSpec::Kind::klt || projector.kind == ProjectorSpec::Kind::think;
  return asks && !projector.is_fixed() && !setup.values;
}

// Of the keys of a layer: the newest queries where channels are judged at the end of a prompt, else
// those of the tokens that are there when the basis is fitted, at least.
QuerySquares query_squares(const SideSetup& setup, const LayerShape& shape,
                           const std::shared_ptr<MemoryCounter>& counter) {
  const ProjectorSpec& projector = setup.spec.projector;
  const bool newest = projector.kind == ProjectorSpec::Kind::think;
  return {uses_queries(setup) ? shape.n_kv_heads : 0, shape.key_dim,
          newest ? projector.window : int64_t{setup.sinks} + projector.fit + setup.spec.tail,
          newest, counter};
}

}  // namespace

std::string side_name(size_t layer, int head, bool values) {
  return message("layer ", layer, ", kv head ", head, ", ", values ? "values" : "keys");
}

LayerCache::LayerCache(std::span<const SideSetup> keys_setups,
                       std::span<const SideSetup> values_setups, const LayerShape& shape,
                       const Selector* selector, const std::shared_ptr<MemoryCounter>& counter)
    : LayerRows(make_sides(keys_setups, counter), make_sides(values_setups, counter),
                CountedVector<KeptHead>(CountedAllocator<KeptHead>(counter))),
      views(CountedAllocator<HeadView>(counter)),
      bounds(CountedAllocator<HeadBounds>(counter)),
      queries(query_squares(keys_setups[0], shape, counter)),
      masks(counter),
      sinks(keys_setups[0].sinks) {
  views.resize(static_cast<size_t>(shape.n_kv_heads));
  // A window drops rows on its own.
  if (selector != nullptr && shape.window == 0) {
    kept.assign(static_cast<size_t>(shape.n_kv_heads), KeptHead(counter));
    const unsigned needs = selector->needs();
    if ((needs & (Selector::mass | Selector::future)) != 0) {
      voters.emplace(selector->voters(), counter);
      if ((needs & Selector::future) != 0) {
        voters->want_moments(selector->spec().sinks, shape.rotation.get());
      }
    }
  }
  refresh_views();
}

LayerCache::LayerCache(const LayerCache& other)
    : LayerRows(other),
      views(other.views),
      bounds(other.bounds),
      queries(other.queries),
      masks(other.masks),
      voters(other.voters),
      blocks(other.blocks),
      sinks(other.sinks),
      appended(other.appended) {
  refresh_views();
}

void LayerCache::refresh_views() {
  const auto view = [](const Sides& sides, int head) {
    const int shared = sides[0].setup().n_heads;
    return sides[static_cast<size_t>(head / shared)].view(head % shared);
  };
  for (int head = 0; head < n_heads(); ++head) {
    HeadView& out = views[static_cast<size_t>(head)];
    out = {.k = view(keys, head),
           .v = view(values, head),
           .n_rows = rows(head),
           .first_pos = first_pos,
           .page_offset = sinks};
    if (kept.empty()) continue;
    const KeptHead& own = kept[static_cast<size_t>(head)];
    out.positions = own.row_positions().rows;
    if (own.n_dead > 0) out.dead = own.dead.data();
  }
}

void LayerCache::drop_before(int64_t keep_from) noexcept {
  // Both sides must start at the same row, and may have sealed different numbers of pages.
  const int first_page = first_pos == 0 ? sinks : first_pos;
  int64_t n_pages = (keep_from - first_page) / kPageTokens;
  each_side([&](const SideCache& side, int) {
    n_pages = std::min<int64_t>(n_pages, side.pages().full_pages());
  });
  if (n_pages <= 0) return;
  each_side([&](SideCache& side, int) { side.drop_front(static_cast<int>(n_pages)); });
  first_pos = first_page + static_cast<int>(n_pages) * kPageTokens;
}

KvCache::State::State(const CacheSpec& spec_, std::vector<LayerShape> shapes_, RowScorer scorer_,
                      std::shared_ptr<MemoryCounter> counter_)
    : spec(spec_),
      shapes(std::move(shapes_)),
      counter(std::move(counter_)),
      layers(CountedAllocator<LayerCache>(counter)),
      seals(CountedAllocator<LayerSeal>(counter)),
      jobs(CountedAllocator<SealJob>(counter)),
      scorer(std::move(scorer_)),
      shown(counter) {
  check_rules();
  layers.reserve(shapes.size());
  make_selector();
  if (!spec.bases.empty()) file = CalibratedBases::open(spec.bases);
  if (file && file->layers() != static_cast<int>(shapes.size())) {
    throw ConfigError(message("cache: basis: expected bases of ", shapes.size(),
                              " layers, found those of ", file->layers()));
  }
  for (size_t i = 0; i < shapes.size(); ++i) {
    const std::vector<SideSetup> keys = setups(i, false);
    const std::vector<SideSetup> values = setups(i, true);
    layers.emplace_back(keys, values, shapes[i], selector.get(), counter);
    make_blocks(i);
  }
  make_bounds();
  reserve_jobs();
}

KvCache::State::State(const State& other)
    : spec(other.spec),
      shapes(other.shapes),
      counter(other.counter),
      layers(other.layers),
      shared(other.shared),
      file(other.file),
      latent(other.latent),
      n_tokens(other.n_tokens),
      seals(CountedAllocator<LayerSeal>(counter)),
      jobs(CountedAllocator<SealJob>(counter)),
      scorer(other.scorer),
      selector(other.selector),
      in_prompt(other.in_prompt),
      prompt_tokens(other.prompt_tokens),
      selected_at(other.selected_at),
      dropped_at(other.dropped_at),
      shift(other.shift),
      shown(counter),
      block_file(other.block_file) {
  if (other.block_work != nullptr) block_work = std::make_unique<BlockWork>();
  reserve_jobs();
}

KvCache::KvCache(const CacheSpec& spec, std::vector<LayerShape> layers, RowScorer scorer,
                 MemorySource& memory) {
  const std::string error = spec.error();
  if (!error.empty()) throw ConfigError(message("cache spec: ", error));
  for (size_t i = 0; i < layers.size(); ++i) {
    check_range("n_kv_heads", i, layers[i].n_kv_heads, 1, kMaxHeads);
    check_range("window", i, layers[i].window, 0, INT32_MAX);
    check_range("key_dim", i, layers[i].key_dim, 1, kMaxDim);
    check_range("value_dim", i, layers[i].value_dim, 1, kMaxDim);
  }
  state_ = std::make_unique<State>(spec, std::move(layers), std::move(scorer),
                                   std::make_shared<MemoryCounter>(memory));
}

KvCache::KvCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

const CacheSpec& KvCache::spec() const { return state_->spec; }
std::span<const LayerShape> KvCache::layers() const { return state_->shapes; }
int KvCache::n_tokens() const { return state_->n_tokens; }
int KvCache::next_position() const { return state_->n_tokens - state_->shift; }
const MemoryCounter& KvCache::memory() const { return *state_->counter; }
void KvCache::limit_memory(int64_t bytes) { state_->counter->set_limit(bytes); }

void KvCache::append(Backend& backend, int layer, ConstMat k, ConstMat v) {
  LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  const LayerShape& shape = state_->shapes[static_cast<size_t>(layer)];
  KVE_ASSERT(k.rows == v.rows && k.cols == int64_t{shape.n_kv_heads} * shape.key_dim &&
             v.cols == int64_t{shape.n_kv_heads} * shape.value_dim);
  if (k.rows == 0) return;
  if (cache.blocks && k.rows + cache.appended > state_->spec.selector.span) {
    throw ConfigError(
        message("cache infllm: expected passes of at most span=", state_->spec.selector.span,
                " tokens, found ", k.rows + cache.appended));
  }
  const int first_new = state_->n_tokens + cache.appended;
  if (k.rows > kMaxTokens - first_new) {
    throw CapacityError(
        message("cache: expected at most ", kMaxTokens, " tokens, found ", first_new + k.rows));
  }
  const int before = cache.rows(0);
  SealJobs& jobs = state_->jobs;
  const auto add_rows = [&] {
    jobs.clear();
    const auto add = [&](Sides& sides, ConstMat rows) {
      const int width = sides[0].setup().width();
      for (size_t i = 0; i < sides.size(); ++i) {
        sides[i].append(rows.columns(static_cast<int64_t>(i) * width, width), cache.first_pos,
                        &jobs);
      }
    };
    add(cache.keys, k);
    add(cache.values, v);
    for (KeptHead& head : cache.kept) {
      head.append(static_cast<int>(k.rows), first_new - state_->shift,
                  state_->repeat || (cache.weighs() && state_->is_observing(cache)));
    }
    for (SealJob& job : jobs) job.layer = layer;
    if (backend.seal(jobs) >= 0) {
      backend.fetch(k);
      backend.fetch(v);
      throw Error(locate_not_finite(layer, shape.n_kv_heads, first_new, k, v));
    }
    state_->extend_bounds(backend, &cache, static_cast<int>(k.rows));
  };
  const auto undo = [&] {
    for (KeptHead& head : cache.kept) head.truncate(head.rows_before(first_new - state_->shift));
    cache.each_side([&](SideCache& side, int head) {
      side.truncate_appended(cache.kept.empty() ? before : cache.rows(head));
    });
    for (HeadBounds& bounds : cache.bounds) bounds.truncate(before);
    cache.refresh_views();
  };
  try {
    state_->with_room(backend, add_rows, undo);
  } catch (...) {
    undo();
    throw;
  }
  cache.appended += static_cast<int>(k.rows);
  cache.refresh_views();
}

bool KvCache::wants_queries(int layer) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  return cache.queries.collects() && !cache.all_keys_fitted();
}

void KvCache::observe_queries(int layer, ConstMat q) {
  state_->layers.at(static_cast<size_t>(layer)).queries.append(q);
}

std::vector<double> KvCache::mean_squared_queries(int layer, int kv_head) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  if (!wants_queries(layer)) {
    return std::vector(static_cast<size_t>(cache.keys[0].setup().head_dim), 1.0);
  }
  return cache.queries.means(kv_head, 0);
}

std::span<const HeadView> KvCache::view(int layer) const {
  return state_->layers.at(static_cast<size_t>(layer)).views;
}

bool KvCache::attends_apart(int layer) const {
  const LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  return cache.blocks.has_value() || !cache.masks.empty();
}

void KvCache::attend(Backend& backend, const AttendParams& params, int layer, ConstMat q, Mat out) {
  State& s = *state_;
  LayerCache& cache = s.layers.at(static_cast<size_t>(layer));
  backend.fetch(q);
  if (!cache.blocks) {
    const auto n = static_cast<int>(q.rows);
    const AttendTask task{q, cache.views, next_position() + cache.appended - n, out,
                          log_sums(layer, n, params.n_heads)};
    s.attend_masked(backend, params, &cache, task);
    return observe_attention(backend, layer, params, task);
  }
  cache.blocks->attend(backend, params, {q, cache.views, next_position(), out}, s.block_work.get());
}

void KvCache::commit(Backend& backend, int n, bool prompt_goes_on) {
  prepare_commit(backend, n, prompt_goes_on);
  finish_commit(n);
}

// Lists what is to be sealed when all but the newest `appended` rows are committed.
void KvCache::State::plan_seals(int appended) {
  for (size_t i = 0; i < layers.size(); ++i) plan_seals(rows_of(i), &layers[i], appended);
}

void KvCache::State::plan_seals(LayerRows* rows, const LayerCache* layer, int appended) {
  for (const bool values : {false, true}) {
    const Sides& sides = rows->sides(values);
    const auto to_seal = [&](const SideCache& side) {
      return side.rows_to_seal(appended, closes_prompt);
    };
    const int n = to_seal(sides[0]);
    const int bases = sides[0].bases_to_fit(n);
    if (std::ranges::all_of(sides, [&](const SideCache& side) {
          return to_seal(side) == n && side.bases_to_fit(n) == bases;
        })) {
      if (n > 0) seals.push_back({rows, layer, values, 0, sides.size(), n, {}});
      continue;
    }
    // Heads that keep different numbers of rows, or of which some have a basis already.
    for (size_t side = 0; side < sides.size(); ++side) {
      const int own = to_seal(sides[side]);
      if (own > 0) seals.push_back({rows, layer, values, side, 1, own, {}});
    }
  }
}

void KvCache::State::fit_seals(Backend& backend, int n_new, int appended) {
  backend.pool().parallel(static_cast<int64_t>(seals.size()), [&](int64_t i) {
    LayerSeal& seal = seals[static_cast<size_t>(i)];
    if (seal.sides()[0].bases_to_fit(seal.n) == 0) return;
    SidesToFit to_fit{seal.sides(), seal.first_head(), appended, {}};
    for (const SideCache& side : to_fit.sides) {
      const int head =
          to_fit.first_head + static_cast<int>(to_fit.positions.size()) * side.setup().n_heads;
      to_fit.positions.push_back(seal.rows->positions(head));
    }
    seal.fitted = fit_bases(backend, to_fit, seal.n, seal.layer->queries, n_new);
  });
}

// Kept is memory for what a decode step appends to a layer, not for the jobs of a long prompt or of
// all sides that are sealed.
void KvCache::State::reserve_jobs() {
  size_t sides = 0;
  for (const LayerCache& layer : layers) {
    sides = std::max(sides, layer.keys.size() + layer.values.size());
  }
  seals.clear();
  seals.reserve(2 * layers.size());
  jobs.clear();
  if (jobs.capacity() == sides) return;
  SealJobs kept(jobs.get_allocator());
  kept.reserve(sides);
  kept.swap(jobs);
}

void KvCache::State::release_jobs() noexcept {
  try {
    reserve_jobs();
  } catch (const CapacityError&) {
    // No memory for the smaller list: keep the large one.
  }
}

void KvCache::State::begin_seals(Backend& backend, int n, int appended) {
  plan_seals(appended);
  fit_seals(backend, n, appended);
  size_t sides = 0;
  for (const LayerSeal& seal : seals) sides += seal.sides().size();
  jobs.reserve(sides);
  for (const LayerSeal& seal : seals) {
    const size_t per_side = seal.fitted.size() / seal.sides().size();
    std::span<const BasisData> fitted = seal.fitted;
    int head = seal.first_head();
    for (SideCache& side : seal.sides()) {
      side.begin_seal(seal.n, fitted.first(per_side), seal.rows->positions(head), &jobs);
      fitted = fitted.subspan(per_side);
      head += side.setup().n_heads;
    }
  }
  // append() let only finite rows into the tails.
  if (!jobs.empty() && backend.seal(jobs) >= 0) {
    throw Error("cache: the backend refused to code finite values");
  }
}

void KvCache::prepare_commit(Backend& backend, int n, bool prompt_goes_on) {
  State& s = *state_;
  const int left = s.layers.empty() ? 0 : s.layers[0].appended - n;
  KVE_ASSERT(n >= 0 && left >= 0);
  for (const LayerCache& layer : s.layers) {
    KVE_ASSERT(layer.appended == n + left);
    KVE_ASSERT(!layer.blocks || left == 0 || n == 0);
  }
  s.seals.clear();
  s.jobs.clear();
  s.live_before_commit = s.counter->live();
  s.prompt_follows = prompt_goes_on;
  s.closes_prompt = !prompt_goes_on && (s.in_prompt || n >= kPageTokens);
  try {
    s.count_votes(backend, n);
    const auto unselect = [&] { s.forget_choice(); };
    s.with_room(backend, [&] { s.select(backend, n, left, prompt_goes_on); }, unselect);
    if (prompt_goes_on && s.waits_for_prompt()) return;
    const auto cancel = [&] {
      const auto undo = [](SideCache& side, int) { side.cancel_seal(); };
      for (LayerCache& layer : s.layers) layer.each_side(undo);
      for (Selected& chosen : s.selected) chosen.rows.each_side(undo);
      s.release_jobs();
    };
    s.with_room(backend, [&] { s.begin_seals(backend, n, left); }, cancel);
    s.lower_aged(backend, s.n_tokens + n);
    for (LayerCache& layer : s.layers) {
      if (layer.blocks && n > 0) layer.blocks->prepare_commit(backend);
    }
  } catch (...) {
    rollback();
    throw;
  }
  s.release_jobs();
}

void KvCache::finish_commit(int n) noexcept {
  State& s = *state_;
  s.finish_selection(n);
  s.n_tokens += n;
  s.in_prompt = s.prompt_follows;
  for (size_t i = 0; i < s.layers.size(); ++i) {
    LayerCache& layer = s.layers[i];
    layer.appended -= n;
    layer.queries.commit(n);
    layer.each_side([](SideCache& side, int) { side.finish_seal(); });
    if (layer.all_keys_fitted()) layer.queries.clear();
    if (s.shapes[i].window > 0) layer.drop_before(oldest_kept(s.shapes[i].window, s.n_tokens));
    if (layer.blocks && n > 0) {
      layer.blocks->finish_commit();
      layer.drop_before(layer.blocks->end());
      layer.blocks->drop_local(layer.first_pos);
    }
    layer.refresh_views();
  }
  // A prompt that was dropped or coded: its rows lay between blocks that stay.
  if (s.live_before_commit - s.counter->live() >= kMuchMemory) give_back_free_memory();
}

int KvCache::tokens_until_seal() const {
  const State& s = *state_;
  int least = s.tokens_until_selection();
  const int64_t newest = int64_t{s.n_tokens} - s.shift - 1;
  for (const LayerCache& layer : s.layers) {
    if (layer.blocks) return 1;  // tokens that are read together retrieve together
    layer.each_side([&](const SideCache& side, int head) {
      least = std::min(least, side.rows_until_seal(layer.appended));
      least = std::min(least, side.tokens_until_lowered(layer.positions(head), newest));
    });
  }
  return least;
}

KvCache KvCache::fork() const {
  KvCache copy(std::make_unique<State>(*state_));
  copy.rollback();
  state_->counter->source().wait();  // the copy may live in another thread
  return copy;
}

}  // namespace kve
