// When a selector runs, and how the rows that it does not keep go.
//
// It runs at the end of the first prompt (or after each of its chunks), and then once so many
// tokens were read. A prompt waits in the tails until it is read, so that what stays is coded
// afterwards and only once. Later on, rows that are not kept are marked dead first; when enough of
// a head's rows are, what is left is decoded and goes through the tail again.
#include <algorithm>
#include <iterator>
#include <numeric>

#include "base/error.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_state.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

// Dead rows of a head before they are removed: a share of its rows, but not of few. Rows that are
// coded once more lose something; copies of others cost little beside reading past dead ones.
constexpr int kCodedDeadShare = 4;
constexpr int kExactDeadShare = 16;
constexpr int kFewDead = kPageTokens;

bool is_exact(const SideCache& side) {
  const SideSpec& spec = side.setup().spec;
  return spec.codec.id == CodecId::f16 && spec.projector == ProjectorSpec() && spec.older.empty();
}

int most_dead(const LayerCache& layer, int rows) {
  const bool exact =
      std::ranges::all_of(layer.keys, is_exact) && std::ranges::all_of(layer.values, is_exact);
  return std::max(kFewDead, rows / (exact ? kExactDeadShare : kCodedDeadShare));
}

// What a head's rows look like to a selector, without the dead ones.
struct LiveHead {
  std::vector<int32_t> rows;  // of the head
  std::vector<int32_t> positions;
  std::vector<float> mass;
  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> means;
  std::vector<float> spread;
};

void read_live(const SideCache& side, int head, RowPositions positions,
               std::span<const int32_t> rows, std::vector<float>* out) {
  const auto dim = static_cast<size_t>(side.setup().head_dim);
  if (static_cast<int>(rows.size()) == side.rows()) {  // all of them
    out->resize(rows.size() * dim);
    return side.decode(head, positions, {out->data(), side.rows(), static_cast<int64_t>(dim)});
  }
  std::vector<float> all(static_cast<size_t>(side.rows()) * dim);
  side.decode(head, positions, {all.data(), side.rows(), static_cast<int64_t>(dim)});
  out->resize(rows.size() * dim);
  for (size_t r = 0; r < rows.size(); ++r) {
    std::copy_n(all.data() + static_cast<size_t>(rows[r]) * dim, dim, out->data() + r * dim);
  }
}

void expect_queries(const Voters& voters, int kv_head, int group, int64_t from, int future,
                    const Rotation* rotation, LiveHead* out) {
  const QueryMoments* moments = voters.moments();
  const auto dim = static_cast<size_t>(moments->dim());
  out->means.resize(static_cast<size_t>(group) * dim);
  out->spread.resize(static_cast<size_t>(group) * dim * dim);
  std::vector<double> mean(dim);
  std::vector<double> covariance(dim * dim);
  for (int g = 0; g < group; ++g) {
    const auto at = static_cast<size_t>(g) * dim;
    moments->mean(kv_head * group + g, mean);
    moments->covariance(kv_head * group + g, covariance);
    turn_to_future(rotation != nullptr ? std::span<const double>(rotation->frequencies)
                                       : std::span<const double>{},
                   rotation != nullptr && rotation->interleaved, from, future, mean, covariance,
                   out->means.data() + at,
                   {out->spread.data() + at * dim, moments->dim(), moments->dim()});
  }
}

// How many of the newest n tokens before position `next` every head still has a row of: attention
// counts rows from a query's own on, and the scores of a function may drop some of these.
int whole_voters(const LayerCache& layer, int next, int n) {
  for (const KeptHead& head : layer.kept) {
    const int rows = head.rows_before(next);
    const int most = std::min(n, rows);
    n = 0;
    while (n < most && head.positions[static_cast<size_t>(rows - 1 - n)] == next - 1 - n) ++n;
  }
  return n;
}

// The weights that the newest queries of a layer, before position `next`, give its rows:
// [n_kv_heads][rows]. n: tokens that are being committed.
std::vector<std::vector<float>> weigh(Backend& backend, const LayerCache& layer, int n, int next) {
  const Voters& voters = *layer.voters;
  std::vector<std::vector<float>> mass;
  const auto came_along = [](const KeptHead& head) {
    return head.mass.empty() && head.pending.size() == head.positions.size();
  };
  if (std::ranges::all_of(layer.kept, came_along)) {
    for (const KeptHead& head : layer.kept) {
      mass.emplace_back(head.pending.begin(), head.pending.end());
    }
    return mass;
  }
  std::vector<float*> pointers;
  for (const KeptHead& head : layer.kept) mass.emplace_back(head.positions.size());
  for (std::vector<float>& rows : mass) pointers.push_back(rows.data());
  const int there = voters.committed() + voters.pending(n);
  const int count = whole_voters(layer, next, std::min(there, voters.most()));
  if (count == 0) return mass;
  const MassTask task{voters.queries(there - count, count), layer.views, next - count,
                      voters.sums_of(there - count), pointers};
  backend.attention_mass(voters.params(), MassOf::sum, {&task, 1});
  return mass;
}

}  // namespace

void KvCache::State::make_selector() {
  if ((spec.selector.keeps_all() || spec.selector.uses_blocks()) && !scorer) return;
  const auto has_window = [](const LayerShape& shape) { return shape.window > 0; };
  if (spec.selector.reassign && std::ranges::any_of(shapes, has_window)) {
    throw ConfigError(
        "cache: positions=reassigned: expected layers without a sliding window, found some");
  }
  size_t heads = 0;
  for (const LayerShape& shape : shapes) {
    heads = std::max(heads, static_cast<size_t>(shape.n_kv_heads));
  }
  SelectorSpec asked = spec.selector;
  asked.sinks = std::max(asked.sinks, spec.sinks);  // these are in f16, before all pages
  selector =
      kve::make_selector(asked, static_cast<int>(shapes.size()), static_cast<int>(heads), scorer);
}

LayerRows* KvCache::State::rows_of(size_t layer) {
  for (Selected& chosen : selected) {
    if (chosen.layer == layer) return &chosen.rows;
  }
  return &layers[layer];
}

bool KvCache::State::is_selection_due(int n, bool prompt_goes_on) const {
  if (selector == nullptr) return false;
  if (selector->repeats_prompt()) {
    return !prompt_goes_on && prompt_tokens == 0 &&
           (repeat || (n > 0 && !drops_of_prompt(n_tokens + n)));
  }
  if (n == 0) return false;
  if (prompt_goes_on) return spec.selector.chunked;
  const int interval = spec.selector.interval;
  return prompt_tokens == 0 || (interval > 0 && n_tokens + n - selected_at >= interval);
}

int KvCache::State::tokens_until_selection() const {
  if (prompt_tokens == 0 && (selector != nullptr || spec.selector.reads_some())) return 1;
  if (selector == nullptr) return kMaxTokens;
  const int interval = spec.selector.interval;
  return interval == 0 ? kMaxTokens : std::max(1, selected_at + interval - n_tokens);
}

// What the queries that are about to be committed gave the rows, where it is summed up.
void KvCache::State::count_votes(Backend& backend, int n) {
  for (LayerCache& layer : layers) {
    if (!layer.voters) continue;
    layer.voters->prepare_commit(backend, n, n_tokens - shift);
    const int few = layer.voters->pending(n);
    if (!layer.weighs() || few == 0) continue;
    std::vector<float*> pending;
    for (KeptHead& head : layer.kept) pending.push_back(head.pending.data());
    const int first = layer.voters->committed();
    const MassTask task{layer.voters->queries(first, few), layer.views, n_tokens - shift,
                        layer.voters->sums_of(first), pending};
    backend.attention_mass(layer.voters->params(), MassOf::sum, {&task, 1});
  }
}

LayerPlace KvCache::State::place_of(size_t index, int n) const {
  return {.layer = static_cast<int>(index),
          .n_layers = static_cast<int>(layers.size()),
          .n_tokens = n_tokens + n - shift,
          .n_budget_tokens = prompt_tokens > 0 ? prompt_tokens : n_tokens + n};
}

// A token that comes once budgets are used up costs a head one row at most, which is found among
// all of them, without a list of those that stay. False where more is to be done, and nothing is.
bool KvCache::State::drop_worst(size_t index, int n, int left,
                                std::span<const std::vector<float>> mass) {
  LayerCache& layer = layers[index];
  if (prompt_tokens == 0 || spec.selector.reassign) return false;
  std::vector<HeadRows> heads(layer.kept.size());
  std::vector<std::vector<float>> sums(layer.kept.size());
  std::vector<const uint64_t*> dead;
  for (size_t h = 0; h < heads.size(); ++h) {
    const KeptHead& head = layer.kept[h];
    if (head.n_dead + 1 >= most_dead(layer, head.rows())) return false;
    const int rows = head.rows() - left;
    heads[h].positions = std::span(head.positions).first(static_cast<size_t>(rows));
    if (!head.mass.empty()) {
      heads[h].mass = sums[h] = head.masses(rows);
    } else if (!mass.empty()) {
      heads[h].mass = std::span(mass[h]).first(static_cast<size_t>(rows));
    }
    dead.push_back(head.dead.data());
  }
  const int group = layer.heads_per_group();
  const auto going = worst_rows(*selector, place_of(index, n), heads, dead, group);
  if (!going) return false;
  for (size_t h = 0; h < heads.size(); ++h) {
    const int32_t row = (*going)[h / static_cast<size_t>(group)];
    if (row >= 0) layer.kept[h].doomed.push_back(row);
  }
  return true;
}

// The rows that each group of heads of a layer keeps, without those of appended tokens.
std::vector<std::vector<int32_t>> KvCache::State::choose(
    size_t index, int n, int left, std::span<const std::vector<float>> mass) const {
  const LayerCache& layer = layers[index];
  const unsigned needs = selector->needs();
  std::vector<LiveHead> live(layer.kept.size());
  std::vector<HeadRows> heads(layer.kept.size());
  for (size_t h = 0; h < live.size(); ++h) {
    const KeptHead& head = layer.kept[h];
    LiveHead& own = live[h];
    own.rows = head.live_rows(head.rows() - left);
    own.positions.resize(own.rows.size());
    if (!head.mass.empty() || !mass.empty()) own.mass.resize(own.rows.size());
    for (size_t i = 0; i < own.rows.size(); ++i) {
      const auto r = static_cast<size_t>(own.rows[i]);
      own.positions[i] = head.positions[r];
      if (!head.mass.empty()) {
        own.mass[i] = head.mass_of(own.rows[i]);
      } else if (!mass.empty()) {
        own.mass[i] = mass[h][r];
      }
    }
    HeadRows& rows = heads[h];
    const auto kv_head = static_cast<int>(h);
    const auto read = [&](const Sides& sides, std::vector<float>* out) -> ConstMat {
      const int per_side = sides[0].setup().n_heads;
      read_live(sides[h / static_cast<size_t>(per_side)], kv_head % per_side,
                layer.positions(kv_head), own.rows, out);
      return {out->data(), static_cast<int64_t>(own.rows.size()), sides[0].setup().head_dim};
    };
    rows.positions = own.positions;
    if ((needs & Selector::keys) != 0) rows.keys = read(layer.keys, &own.keys);
    if ((needs & Selector::values) != 0) rows.values = read(layer.values, &own.values);
    rows.mass = own.mass;
    if (!layer.voters) continue;
    const AttendParams& params = layer.voters->params();
    rows.group = std::max(1, params.n_heads / std::max(1, params.n_kv_heads));
    const int there = layer.voters->committed() + layer.voters->pending(n);
    rows.n_queries = whole_voters(layer, n_tokens + n - shift, std::min(selector->voters(), there));
    if ((needs & Selector::queries) != 0) {
      const int64_t width = int64_t{rows.group} * params.key_dim;
      rows.queries = layer.voters->queries(there - rows.n_queries, rows.n_queries)
                         .columns(kv_head * width, width);
    }
    if ((needs & Selector::future) == 0) continue;
    const Rotation* rotation = shapes[index].rotation.get();
    expect_queries(*layer.voters, kv_head, rows.group, n_tokens + n, selector->spec().future,
                   rotation, &own);
    rows.future_means = {own.means.data(), rows.group, layer.keys[0].setup().head_dim};
    rows.future_spread = {own.spread.data(), rows.keys.cols * rows.group, rows.keys.cols};
  }
  std::vector<std::vector<int32_t>> chosen =
      choose_rows(*selector, place_of(index, n), heads, layer.heads_per_group());
  for (size_t g = 0; g < chosen.size(); ++g) {
    const LiveHead& first = live[g * static_cast<size_t>(layer.heads_per_group())];
    for (int32_t& row : chosen[g]) row = first.rows[static_cast<size_t>(row)];
  }
  return chosen;
}

// Marks what goes, when that is little, else makes the layer anew.
std::optional<LayerRows> KvCache::State::drop_others(LayerCache* layer,
                                                     std::span<const std::vector<int32_t>> chosen,
                                                     int left) {
  const auto group = static_cast<size_t>(layer->heads_per_group());
  bool drops = false;
  bool many = prompt_tokens == 0 || spec.selector.reassign;
  for (size_t h = 0; h < layer->kept.size(); ++h) {
    const KeptHead& head = layer->kept[h];
    const int alive = static_cast<int>(chosen[h / group].size()) + left;
    drops = drops || alive < head.alive();
    many = many || head.rows() - alive >= most_dead(*layer, head.rows());
  }
  if (!drops) return std::nullopt;
  std::vector<std::vector<int32_t>> stay(chosen.begin(), chosen.end());
  for (size_t h = 0; h < layer->kept.size(); ++h) {
    KeptHead& head = layer->kept[h];
    std::vector<int32_t>& rows = stay[h / group];
    if (h % group == 0) {
      for (int row = head.rows() - left; row < head.rows(); ++row) rows.push_back(row);
    }
    if (many) continue;
    const std::vector<int32_t> live = head.live_rows(head.rows());
    std::ranges::set_difference(live, rows, std::back_inserter(head.doomed));
  }
  if (!many) return std::nullopt;
  const auto fewer = [&](const Sides& sides) {
    Sides out(sides.get_allocator());
    out.reserve(sides.size());
    const auto per_side = static_cast<size_t>(sides[0].setup().n_heads);
    for (size_t i = 0; i < sides.size(); ++i) {
      const size_t head = i * per_side;
      out.push_back(sides[i].with_rows(stay[head / group], layer->positions(static_cast<int>(head)),
                                       spec.selector.reassign));
      if (ends_prompt) out.back().fit_soon();
    }
    return out;
  };
  CountedVector<KeptHead> kept(layer->kept.get_allocator());
  kept.reserve(layer->kept.size());
  for (size_t h = 0; h < layer->kept.size(); ++h) {
    kept.push_back(layer->kept[h].with_rows(stay[h / group], spec.selector.reassign));
  }
  return LayerRows(fewer(layer->keys), fewer(layer->values), std::move(kept));
}

void KvCache::State::select(Backend& backend, int n, int left, bool prompt_goes_on) {
  selecting = is_selection_due(n, prompt_goes_on);
  next_shift = shift;
  ends_prompt = !prompt_goes_on;
  if (!selecting) return;
  std::vector<std::vector<std::vector<float>>> masses(layers.size());
  const bool votes = (selector->needs() & Selector::mass) != 0 && selector->voters() > 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!votes || !layers[i].voters) continue;
    if (!masks_queries()) {
      masses[i] = weigh(backend, layers[i], n, n_tokens + n - shift);
    } else if (prompt_tokens > 0) {
      masses[i] = weigh_queries(backend, &layers[i], n);
    }
  }
  std::vector<std::vector<std::vector<int32_t>>> in_all;
  if (selector->repeats_prompt()) in_all = choose_in_all_layers(n);
  std::vector<std::optional<LayerRows>> anew(layers.size());
  const auto select_in = [&](int64_t i) {
    LayerCache& layer = layers[static_cast<size_t>(i)];
    if (layer.kept.empty()) return;
    const auto index = static_cast<size_t>(i);
    const std::vector<std::vector<float>>& mass = masses[index];
    if (masks_queries()) return mask_rows(&layer, mass, left);
    if (in_all.empty() && drop_worst(index, n, left, mass)) return;
    const auto chosen = in_all.empty() ? choose(index, n, left, mass) : std::move(in_all[index]);
    anew[index] = drop_others(&layer, chosen, left);
  };
  const auto n_layers = static_cast<int64_t>(layers.size());
  if (selector->is_thread_safe()) {
    backend.pool().parallel(n_layers, select_in);
  } else {
    for (int64_t i = 0; i < n_layers; ++i) select_in(i);
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!anew[i]) continue;
    // All layers and heads have the same rows where positions are reassigned.
    if (spec.selector.reassign) next_shift = n_tokens + n + left - anew[i]->rows(0);
    selected.push_back({i, std::move(*anew[i])});
  }
}

void KvCache::State::finish_selection(int n) noexcept {
  bool dropped = !selected.empty();
  for (LayerCache& layer : layers) {
    for (KeptHead& head : layer.kept) {
      dropped = dropped || !head.doomed.empty();
      head.commit();
    }
    dropped = dropped || layer.masks.is_stepping();
    layer.masks.commit();
    if (layer.voters) layer.voters->finish_commit(n);
  }
  for (Selected& chosen : selected) {
    LayerCache& layer = layers[chosen.layer];
    layer.keys.swap(chosen.rows.keys);
    layer.values.swap(chosen.rows.values);
    layer.kept.swap(chosen.rows.kept);
  }
  selected.clear();
  if (spec.selector.reads_some() && ends_prompt && prompt_tokens == 0) {
    prompt_tokens = selected_at = n_tokens + n;
  }
  if (!selecting) return;
  selecting = false;
  shift = next_shift;
  selected_at = n_tokens + n;
  if (dropped) dropped_at = selected_at;
  if (!ends_prompt || prompt_tokens > 0) return;
  prompt_tokens = selected_at;
  // Nobody will ask again, unless the prompt is taken back: then nothing was dropped.
  if (spec.selector.interval > 0 || !dropped) return;
  for (LayerCache& layer : layers) {
    if (layer.voters) layer.voters->clear();
    for (KeptHead& head : layer.kept) head.forget_mass();
  }
}

void KvCache::State::forget_choice() noexcept {
  selected.clear();
  selecting = false;
  for (LayerCache& layer : layers) {
    for (KeptHead& head : layer.kept) head.doomed.clear();
    layer.masks.rollback();
  }
}

void KvCache::State::cancel_selection() noexcept {
  selected.clear();
  selecting = false;
  for (LayerCache& layer : layers) {
    for (KeptHead& head : layer.kept) head.rollback();
    layer.masks.rollback();
    if (layer.voters) layer.voters->rollback();
  }
}

void KvCache::State::forget_selection(LayerCache* layer, int n) noexcept {
  for (KeptHead& head : layer->kept) head.truncate(n == 0 ? 0 : head.rows_before(n - shift));
  if (n == 0) layer->masks.clear();  // else no row goes that was masked (dropped_at)
  if (!layer->voters) return;
  if (n == 0) {
    layer->voters->clear();
  } else {
    // Once a prompt has ended, its queries are the last unless others are asked later on.
    const bool ended = spec.selector.interval == 0 && prompt_tokens > 0;
    layer->voters->forget(std::max(0, (ended ? prompt_tokens : n_tokens) - n));
  }
}

void KvCache::State::forget_selection(int n) noexcept {
  if (n < prompt_tokens) prompt_tokens = 0;
  selected_at = std::min(selected_at, n);
  dropped_at = std::min(dropped_at, n);
  if (n == 0) shift = 0;
}

float* KvCache::log_sums(int layer, int64_t n, int n_heads) {
  LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  if (state_->repeat && !cache.kept.empty()) return state_->repeat->log_sums(n, n_heads);
  if (!state_->is_observing(cache)) return nullptr;
  return cache.voters->log_sums(n, n_heads);
}

// The queries of a long pass are not kept until it is committed: they give their weights at once.
// So does a single query, where no pass has several of which only some might be committed. What a
// prompt that is read again gives rows, and what query heads with masks give, goes other ways.
bool KvCache::State::weighs_at_once(const LayerCache& layer, int64_t n_queries) const {
  if (repeat || masks_queries() || !is_observing(layer)) return false;
  const bool single =
      n_queries == 1 && layer.appended == 1 && prompt_tokens > 0 && spec.selector.interval == 1;
  return (layer.weighs() && (n_queries > kFewRows || single)) || (layer.weighs_newest() && single);
}

std::span<float* const> KvCache::State::pending_mass(LayerCache* layer, int64_t n_queries) const {
  if (!weighs_at_once(*layer, n_queries)) return {};
  layer->pending_mass.clear();
  for (KeptHead& head : layer->kept) {
    if (head.mass.empty()) head.pending.assign(head.positions.size(), 0.0f);
    layer->pending_mass.push_back(head.pending.data());
  }
  return layer->pending_mass;
}

void KvCache::observe_attention(Backend& backend, int layer, const AttendParams& params,
                                const AttendTask& task) {
  LayerCache& cache = state_->layers.at(static_cast<size_t>(layer));
  if (cache.voters || state_->repeat) backend.fetch(task.q);
  if (state_->repeat && !cache.kept.empty()) {
    return state_->repeat->observe(backend, params, task, layer, &cache);
  }
  if (!state_->is_observing(cache)) return;
  cache.voters->observe(backend, params, task.q, task.first_pos,
                        state_->weighs_at_once(cache, task.q.rows));
}

}  // namespace kve
