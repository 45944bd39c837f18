#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "sampling/stages.h"
#include "sampling/weights.h"

namespace kve {
namespace {

template <class Value>
void require(bool fine, std::string_view option, std::string_view allowed, Value found) {
  if (!fine) throw ConfigError(message(option, ": expected ", allowed, ", found ", found));
}

void require_fraction(std::string_view option, float value) {
  require(value >= 0 && value <= 1, option, "a number from 0 to 1", value);
}

void require_finite(std::string_view option, float value) {
  require(std::isfinite(value), option, "a finite number", value);
}

// The log of the sum of exp(logit - max).
double log_total(std::span<const float> logits, float max) {
  double total = 0;
  for (const float logit : logits) total += exp_weight(static_cast<double>(logit) - max);
  return log_weight(total);
}

// The first of the largest: candidates are in ascending order of id.
const Candidate& arg_max(const Candidates& c) {
  const Candidate* best = &c.items.front();
  for (const Candidate& item : c.items) {
    if (item.logit > best->logit) best = &item;
  }
  return *best;
}

// The first item whose cumulative weight exceeds a uniform part of the total.
const Candidate& draw(const Candidates& c, Random& random) {
  const float max = c.max_logit();
  const double target = c.total_weight(max) * random.uniform();
  double mass = 0;
  const Candidate* chosen = nullptr;
  for (const Candidate& item : c.items) {
    const double weight = c.weight(item, max);
    if (weight == 0) continue;
    chosen = &item;
    mass += weight;
    if (mass > target) break;  // may never come when `target` was rounded up to the total
  }
  return *chosen;
}

}  // namespace

void SamplingOptions::validate(int vocab_size) const {
  require_finite("temperature", temperature);
  require_fraction("top_p", top_p);
  require_fraction("min_p", min_p);
  require_fraction("typical_p", typical_p);
  require(repeat_penalty > 0 && std::isfinite(repeat_penalty), "repeat_penalty",
          "a finite number above 0", repeat_penalty);
  require(repeat_last_n >= -1, "repeat_last_n", "-1 (all tokens), 0 (none) or a count",
          repeat_last_n);
  require_finite("presence_penalty", presence_penalty);
  require_finite("frequency_penalty", frequency_penalty);
  require(min_keep >= 1, "min_keep", "at least 1", min_keep);
  for (const auto& [token, bias] : logit_bias) {
    require(token >= 0, "logit_bias", "a token of at least 0", token);
    require(vocab_size <= 0 || token < vocab_size, "logit_bias",
            message("tokens below ", vocab_size), token);
    require(bias < std::numeric_limits<float>::infinity(), "logit_bias",
            message("a finite number or -infinity for token ", token), bias);
  }
}

Sampler::Sampler(SamplingOptions options)
    : options_((options.validate(), std::move(options))),
      random_(options_.seed),
      history_(options_.repeat_last_n) {}

void Sampler::accept(Token token) { history_.push(token); }

Sampled Sampler::sample(std::span<const float> logits) {
  const float max = candidates_.assign(logits);
  const bool shaped = run_stages(true);
  if ((shaped ? candidates_.max_logit() : max) == -std::numeric_limits<float>::infinity()) {
    throw Error(message("logits: expected a possible token, found all ", logits.size(),
                        " at -infinity", options_.logit_bias.empty() ? "" : " after logit_bias"));
  }
  const bool greedy = options_.temperature <= 0;
  if (!greedy) run_stages(false);
  Sampled sampled{(greedy ? arg_max(candidates_) : draw(candidates_, random_)).token};
  if (options_.logprobs) {
    const double logit = logits[static_cast<size_t>(sampled.token)];
    sampled.logprob = static_cast<float>(logit - max - log_total(logits, max));
  }
  return sampled;
}

bool Sampler::run_stages(bool shaping) {
  bool any = false;
  for (const SamplingStage& stage : sampling_stages()) {
    if (stage.shapes_logits != shaping || !stage.enabled(options_)) continue;
    stage.apply(options_, history_, candidates_);
    any = true;
  }
  return any;
}

void Sampler::reset() {
  history_.clear();
  random_ = Random(options_.seed);
}

}  // namespace kve
