#include "sampling/stages.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace kve {
namespace {

// A product or sum of floats may leave their range; -infinity stays what it is.
float clamp_to_float(double value) {
  constexpr double kMax = std::numeric_limits<float>::max();
  if (value == -std::numeric_limits<double>::infinity()) return static_cast<float>(value);
  return static_cast<float>(std::clamp(value, -kMax, kMax));
}

size_t min_keep(const SamplingOptions& options) { return static_cast<size_t>(options.min_keep); }

void apply_logit_bias(const SamplingOptions& options, const TokenHistory&, Candidates& c) {
  for (const auto& [token, bias] : options.logit_bias) {
    if (static_cast<size_t>(token) >= c.items.size()) {
      throw ConfigError(
          message("logit_bias: expected tokens below ", c.items.size(), ", found ", token));
    }
    float& logit = c.items[static_cast<size_t>(token)].logit;
    logit = clamp_to_float(static_cast<double>(logit) + bias);
  }
}

// Repetition: CTRL, arXiv:1909.05858, section 4.1, with negative logits multiplied instead, as
// everybody does since. Presence and frequency: as the OpenAI API defines them.
void apply_penalties(const SamplingOptions& options, const TokenHistory& history, Candidates& c) {
  for (const TokenHistory::Count& seen : history.counts()) {
    if (static_cast<size_t>(seen.token) >= c.items.size()) continue;
    float& logit = c.items[static_cast<size_t>(seen.token)].logit;
    double value = logit;
    if (value > 0) {
      value /= options.repeat_penalty;
    } else {
      value *= options.repeat_penalty;
    }
    // Rounded here, so that no compiler fuses it with the subtraction below; the product of a count
    // and a float is exact.
    const float repeated = clamp_to_float(value);
    const double frequency = static_cast<double>(seen.n) * options.frequency_penalty;
    logit = clamp_to_float(repeated - (frequency + options.presence_penalty));
  }
}

void apply_top_k(const SamplingOptions& options, const TokenHistory&, Candidates& c) {
  c.keep_likeliest(std::max(static_cast<size_t>(options.top_k), min_keep(options)));
}

// Locally typical sampling, arXiv:2202.00666: keep the tokens whose surprise is nearest to the
// expected one (the entropy) until they reach the mass. With d = log p + const, the surprise minus
// the entropy is E[d] - d, so no logarithm is needed.
void apply_typical_p(const SamplingOptions& options, const TokenHistory&, Candidates& c) {
  const float max = c.max_logit();
  const auto log_weight_of = [max](const Candidate& item) { return item.logit - max; };
  double total = 0;
  double moment = 0;
  for (const Candidate& item : c.items) {
    const double weight = c.weight(item, max);
    if (weight == 0) continue;
    total += weight;
    moment += weight * log_weight_of(item);  // an exact product: see exp_weight
  }
  const double expected = moment / total;
  const auto more_typical = [&](const Candidate& a, const Candidate& b) {
    const double distance_a = std::fabs(log_weight_of(a) - expected);
    const double distance_b = std::fabs(log_weight_of(b) - expected);
    return distance_a != distance_b ? distance_a < distance_b : likelier(a, b);
  };
  std::sort(c.items.begin(), c.items.end(), more_typical);
  c.n_sorted = 0;
  const double wanted = total * options.typical_p;
  double mass = 0;
  size_t n = 0;
  while (n < c.items.size() && (n < min_keep(options) || mass <= wanted)) {
    mass += c.weight(c.items[n++], max);
  }
  c.keep_first(n);
}

// Nucleus sampling, arXiv:1904.09751. The nucleus is mostly small: sort no more than it needs.
void apply_top_p(const SamplingOptions& options, const TokenHistory&, Candidates& c) {
  const float max = c.max_logit();
  const double wanted = c.total_weight(max) * options.top_p;
  double mass = 0;
  size_t n = 0;
  while (n < c.items.size() && (n < min_keep(options) || mass < wanted)) {
    if (n == c.n_sorted) c.sort_likeliest(std::max<size_t>(256, 4 * n));
    mass += c.weight(c.items[n++], max);
  }
  c.keep_first(n);
}

// arXiv:2407.01082
void apply_min_p(const SamplingOptions& options, const TokenHistory&, Candidates& c) {
  const float max = c.max_logit();
  const auto likely = [&](const Candidate& item) { return c.weight(item, max) >= options.min_p; };
  const size_t n = static_cast<size_t>(std::ranges::count_if(c.items, likely));
  if (n < min_keep(options)) {
    c.keep_likeliest(min_keep(options));
    return;
  }
  const bool sorted = c.n_sorted == c.items.size();
  std::erase_if(c.items, [&](const Candidate& item) { return !likely(item); });
  c.n_sorted = sorted ? c.items.size() : 0;
}

void apply_temperature(const SamplingOptions& options, const TokenHistory&, Candidates& c) {
  c.temperature = options.temperature;
}

bool penalizes(const SamplingOptions& o) {
  return o.repeat_penalty != 1 || o.presence_penalty != 0 || o.frequency_penalty != 0;
}

constexpr std::array kStages = {
    SamplingStage{"logit_bias", true,
                  [](const SamplingOptions& o) { return !o.logit_bias.empty(); }, apply_logit_bias},
    SamplingStage{"penalties", true, penalizes, apply_penalties},
    SamplingStage{"top_k", false, [](const SamplingOptions& o) { return o.top_k > 0; },
                  apply_top_k},
    SamplingStage{"typical_p", false, [](const SamplingOptions& o) { return o.typical_p < 1; },
                  apply_typical_p},
    SamplingStage{"top_p", false, [](const SamplingOptions& o) { return o.top_p < 1; },
                  apply_top_p},
    SamplingStage{"min_p", false, [](const SamplingOptions& o) { return o.min_p > 0; },
                  apply_min_p},
    SamplingStage{"temperature", false, [](const SamplingOptions&) { return true; },
                  apply_temperature},
};

}  // namespace

std::span<const SamplingStage> sampling_stages() { return kStages; }

}  // namespace kve
