#include "sampling/candidates.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "sampling/weights.h"

namespace kve {
namespace {

[[noreturn]] void bad_logit(size_t token, float value) {
  throw Error(message("logits: expected finite numbers or -infinity, found ",
                      value != value ? "NaN" : "+infinity", " at token ", token));
}

}  // namespace

float Candidates::assign(std::span<const float> logits) {
  if (logits.empty()) throw Error("logits: expected one per token of the vocabulary, found none");
  items.resize(logits.size());
  n_sorted = 0;
  temperature = 1;
  float max = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i];
    // False for NaN and +infinity.
    if (!(logit <= std::numeric_limits<float>::max())) bad_logit(i, logit);
    if (logit > max) max = logit;
    items[i] = {logit, static_cast<Token>(i)};
  }
  return max;
}

// One pass that collects what is likelier than the k-th best so far: nearly all of a vocabulary is
// looked at once and never moved.
void Candidates::keep_likeliest(size_t k) {
  if (k < items.size() && n_sorted < k) {
    const size_t room = std::min(items.size(), 2 * k + 64);
    const auto first = items.begin();
    size_t n = room;
    const auto cut = [&] {
      std::nth_element(first, first + (k - 1), first + n, likelier);
      n = k;
    };
    cut();
    Candidate worst = items[k - 1];
    for (size_t i = room; i < items.size(); ++i) {
      if (!likelier(items[i], worst)) continue;
      items[n++] = items[i];
      if (n == room) {
        cut();
        worst = items[k - 1];
      }
    }
    cut();
  }
  keep_first(k);
  sort_likeliest(k);
}

void Candidates::sort_likeliest(size_t n) {
  n = std::min(n, items.size());
  if (n <= n_sorted) return;
  const auto begin = items.begin() + static_cast<std::ptrdiff_t>(n_sorted);
  const auto end = items.begin() + static_cast<std::ptrdiff_t>(n);
  if (end != items.end()) std::nth_element(begin, end, items.end(), likelier);
  std::sort(begin, end, likelier);
  n_sorted = n;
}

void Candidates::keep_first(size_t n) {
  items.resize(std::min(n, items.size()));
  n_sorted = std::min(n_sorted, items.size());
}

float Candidates::max_logit() const {
  if (n_sorted > 0) return items[0].logit;
  float max = -std::numeric_limits<float>::infinity();
  for (const Candidate& item : items) {
    if (item.logit > max) max = item.logit;
  }
  return max;
}

double Candidates::weight(const Candidate& candidate, float max) const {
  return exp_weight((static_cast<double>(candidate.logit) - max) / temperature);
}

double Candidates::total_weight(float max) const {
  double total = 0;
  for (const Candidate& item : items) total += weight(item, max);
  return total;
}

TokenHistory::TokenHistory(int capacity) : capacity_(capacity) {
  // Growing later is rare, and a huge capacity costs nothing until it is used.
  const size_t expected = capacity < 0 ? 1024 : static_cast<size_t>(std::min(capacity, 1024));
  ring_.reserve(capacity < 0 ? 0 : expected);
  counts_.reserve(expected);
}

void TokenHistory::push(Token token) {
  if (capacity_ == 0) return;
  count(token);
  if (capacity_ < 0) return;
  if (ring_.size() < static_cast<size_t>(capacity_)) {
    ring_.push_back(token);
    return;
  }
  uncount(ring_[oldest_]);
  ring_[oldest_] = token;
  oldest_ = (oldest_ + 1) % ring_.size();
}

void TokenHistory::clear() {
  ring_.clear();
  counts_.clear();
  oldest_ = 0;
}

void TokenHistory::count(Token token) {
  const auto at = std::ranges::lower_bound(counts_, token, {}, &Count::token);
  if (at != counts_.end() && at->token == token) {
    ++at->n;
  } else {
    counts_.insert(at, {token, 1});
  }
}

void TokenHistory::uncount(Token token) {
  const auto at = std::ranges::lower_bound(counts_, token, {}, &Count::token);
  if (--at->n == 0) counts_.erase(at);
}

}  // namespace kve
