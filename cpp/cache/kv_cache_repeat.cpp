// Prompts that are read once more before rows are dropped (KVzip, arXiv 2505.23416). What repeats
// them attends to everything, as any text that follows would; weights are those of a softmax of its
// own, over the sinks, the part that is being repeated and what was read of the repetition, so that
// parts of a long prompt are judged alike.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_state.h"

namespace kve {
namespace {

// Bits of rows [first, end) are set; there are bits for n rows at least.
void set_rows(int first, int end, std::vector<uint64_t>* words) {
  for (int row = first; row < end; ++row) {
    (*words)[static_cast<size_t>(row) / 64] |= uint64_t{1} << (row % 64);
  }
}

size_t words_of(int rows) { return (static_cast<size_t>(rows) + 63) / 64; }

}  // namespace

bool KvCache::wants_repeat(int n_tokens) const {
  const State& s = *state_;
  return s.selector != nullptr && s.selector->repeats_prompt() && s.prompt_tokens == 0 &&
         s.drops_of_prompt(n_tokens);
}

// Whether rows go when a prompt ends with n tokens.
bool KvCache::State::drops_of_prompt(int n) const {
  const LayerPlace place{.n_tokens = n, .n_budget_tokens = n};
  return selector->budget(place, 0) < n &&
         std::ranges::any_of(layers, [](const LayerCache& layer) { return !layer.kept.empty(); });
}

void KvCache::begin_repeat(int first, int end) {
  State& s = *state_;
  KVE_ASSERT(first >= 0 && first < end && end <= s.n_tokens);
  rollback();
  if (!s.repeat) {
    for (LayerCache& layer : s.layers) {
      for (KeptHead& head : layer.kept) head.forget_mass();
    }
    s.repeat.emplace(static_cast<int>(s.layers.size()), s.spec.selector.plus == 1, s.counter);
  }
  s.repeat->begin(first, end, s.selector->spec().sinks, s.n_tokens);
}

Repeat::Repeat(int n_layers, bool plus, const std::shared_ptr<MemoryCounter>& counter)
    : plus_(plus),
      most_(static_cast<size_t>(n_layers), CountedVector<float>(CountedAllocator<float>(counter))) {
}

void Repeat::begin(int first, int end, int sinks, int n_tokens) {
  n_tokens_ = n_tokens;
  sinks = std::min(sinks, first);
  hides_rows_ = sinks < first || end < n_tokens;
  hidden_.assign(words_of(n_tokens), 0);
  set_rows(sinks, first, &hidden_);
  set_rows(end, n_tokens, &hidden_);
  unweighed_ = hidden_;
  set_rows(0, sinks, &unweighed_);
}

float* Repeat::log_sums(int64_t n, int n_heads) {
  log_sums_.resize(static_cast<size_t>(n * n_heads));
  return log_sums_.data();
}

bool KvCache::wants_inputs(int layer) const {
  const State& s = *state_;
  return s.repeat && s.repeat->plus() && !s.layers.at(static_cast<size_t>(layer)).kept.empty();
}

void KvCache::observe_inputs(int /*layer*/, ConstMat x) { state_->repeat->observe_inputs(x); }

void Repeat::observe_inputs(ConstMat x) {
  input_logs_.clear();
  for (int64_t r = 0; r < x.rows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < x.cols; ++c) squares += double{x.row(r)[c]} * double{x.row(r)[c]};
    input_logs_.push_back(static_cast<float>(0.5 * std::log2(squares)));
  }
}

// The same for each query head, as if it had a kv head for itself, per unit of the query's input.
void Repeat::observe_heads(Backend& backend, const AttendParams& params, const AttendTask& task,
                           std::span<const HeadView> heads, CountedVector<float>* most) {
  const auto n_heads = static_cast<size_t>(params.n_heads);
  const auto n_rows = static_cast<size_t>(heads[0].n_rows);
  const auto n_tokens = static_cast<size_t>(n_tokens_);
  KVE_ASSERT(input_logs_.size() == static_cast<size_t>(task.q.rows));
  most->resize(n_heads * n_tokens);
  for (size_t i = 0; i < log_sums_.size(); ++i) {
    const float log = input_logs_[i / n_heads];
    // A query of nothing gives nothing.
    log_sums_[i] = std::isfinite(log) ? log_sums_[i] + log : -INFINITY;
  }
  AttendParams apart = params;
  apart.n_kv_heads = params.n_heads;
  std::vector<HeadView> views;
  std::vector<float> weights(n_heads * n_rows);
  std::vector<float*> mass;
  for (size_t h = 0; h < n_heads; ++h) {
    views.push_back(heads[h / (n_heads / heads.size())]);
    mass.push_back(weights.data() + h * n_rows);
  }
  const MassTask job{task.q, views, task.first_pos, task.log_sums, mass};
  backend.attention_mass(apart, MassOf::most, {&job, 1});
  for (size_t h = 0; h < n_heads; ++h) {
    float* to = most->data() + h * n_tokens;
    for (size_t r = 0; r < n_tokens; ++r) to[r] = std::max(to[r], mass[h][r]);
  }
}

void Repeat::observe(Backend& backend, const AttendParams& params, const AttendTask& task,
                     int index, LayerCache* layer) {
  const size_t words = words_of(layer->rows(0));
  hidden_.resize(std::max(words, hidden_.size()));
  unweighed_.resize(hidden_.size());
  set_rows(n_tokens_, layer->rows(0), &unweighed_);
  std::vector<HeadView> heads(task.heads.begin(), task.heads.end());
  std::vector<float*> mass;
  for (KeptHead& head : layer->kept) mass.push_back(head.mass.data());
  if (hides_rows_) {
    out_.resize(static_cast<size_t>(task.out.rows * task.out.cols));
    for (HeadView& head : heads) head.dead = hidden_.data();
    const AttendTask part{task.q, heads, task.first_pos,
                          Mat(out_.data(), task.out.rows, task.out.cols), task.log_sums};
    backend.attend(params, {&part, 1});
  }
  for (HeadView& head : heads) head.dead = unweighed_.data();
  if (plus_) return observe_heads(backend, params, task, heads, &most_[static_cast<size_t>(index)]);
  const MassTask weights{task.q, heads, task.first_pos, task.log_sums, mass};
  backend.attention_mass(params, MassOf::most, {&weights, 1});
}

// [layer][group of heads that keep the same rows], empty for layers without a selector.
std::vector<std::vector<std::vector<int32_t>>> KvCache::State::choose_in_all_layers(int n) const {
  std::vector<GroupScores> groups;
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerCache& layer = layers[i];
    if (layer.kept.empty()) continue;
    std::vector<HeadRows> heads(layer.kept.size());
    for (size_t h = 0; h < heads.size(); ++h) {
      heads[h].positions = layer.kept[h].positions;
      heads[h].mass = layer.kept[h].mass;
    }
    const LayerPlace place{.layer = static_cast<int>(i),
                           .n_layers = static_cast<int>(layers.size()),
                           .n_tokens = n_tokens + n,
                           .n_budget_tokens = n_tokens + n};
    for (GroupScores& group : score_groups(*selector, place, heads, layer.heads_per_group())) {
      groups.push_back(std::move(group));
    }
  }
  std::vector<std::vector<int32_t>> chosen = choose_together(groups);
  std::vector<std::vector<std::vector<int32_t>>> out(layers.size());
  auto next = chosen.begin();
  for (size_t i = 0; i < layers.size(); ++i) {
    const size_t n_groups =
        layers[i].kept.size() / static_cast<size_t>(layers[i].heads_per_group());
    for (size_t g = 0; g < n_groups; ++g) out[i].push_back(std::move(*next++));
  }
  return out;
}

// KVzip+: what a query head gave a row, times what the row's value writes through that head.
void KvCache::State::weigh_values(const ValueNorms& norms) {
  for (size_t i = 0; i < layers.size(); ++i) {
    LayerCache& layer = layers[i];
    const CountedVector<float>& most = repeat->most(static_cast<int>(i));
    if (most.empty()) continue;
    const size_t n = layer.kept[0].mass.size();
    const size_t group = most.size() / n / layer.kept.size();
    std::vector<float> values;
    std::vector<float> norm(n);
    for (size_t h = 0; h < layer.kept.size(); ++h) {
      const SideSetup& setup = layer.values[0].setup();
      const auto per_side = static_cast<size_t>(setup.n_heads);
      values.resize(n * static_cast<size_t>(setup.head_dim));
      const Mat rows(values.data(), static_cast<int64_t>(n), setup.head_dim);
      layer.values[h / per_side].decode(static_cast<int>(h % per_side),
                                        layer.positions(static_cast<int>(h)), rows);
      for (size_t head = h * group; head < (h + 1) * group; ++head) {
        norms(static_cast<int>(i), static_cast<int>(head), rows, norm);
        for (size_t r = 0; r < n; ++r) {
          float& mass = layer.kept[h].mass[r];
          mass = std::max(mass, most[head * n + r] * norm[r]);
        }
      }
    }
  }
}

void KvCache::end_prompt(Backend& backend, const ValueNorms& norms) {
  rollback();
  if (state_->repeat && state_->repeat->plus()) {
    if (!norms) throw ConfigError("kvzip: plus=1 needs the norms of what values write, found none");
    state_->weigh_values(norms);
  }
  prepare_commit(backend, 0);
  finish_commit(0);
  cancel_repeat();
}

void KvCache::cancel_repeat() noexcept {
  rollback();
  state_->repeat.reset();
  for (LayerCache& layer : state_->layers) {
    for (KeptHead& head : layer.kept) head.forget_mass();
  }
}

}  // namespace kve
