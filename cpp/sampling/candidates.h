// What the stages of a Sampler work on: the tokens still possible, and the tokens seen lately.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/token.h"

namespace kve {

struct Candidate {
  float logit = 0;  // finite or -infinity
  Token token = kNoToken;
};

// Likeliest first; equal logits by ascending id, so that every sorting algorithm gives one result.
inline bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Between stages the order of `items` is a function of the input alone (ascending ids, likeliest
// first or most typical first), never of a sorting algorithm: sums over them are the same
// everywhere.
struct Candidates {
  std::vector<Candidate> items;
  size_t n_sorted = 0;  // items[0, n_sorted) are the likeliest, likeliest first
  double temperature = 1;

  // Starts a row: every token a candidate, in ascending order of id. Returns the largest logit.
  // Throws Error when the row is empty or contains NaN or +infinity.
  float assign(std::span<const float> logits);
  // Keeps the k likeliest, likeliest first; k >= 1.
  void keep_likeliest(size_t k);
  // Sorts until the first n items (or all) are the n likeliest. The order of the others is
  // unspecified: the caller drops them or sorts on.
  void sort_likeliest(size_t n);
  // Keeps the first n items.
  void keep_first(size_t n);
  float max_logit() const;  // -infinity when no token is possible
  // exp((logit - max) / temperature), the probability but for a constant.
  double weight(const Candidate& candidate, float max) const;
  // In the order of the items.
  double total_weight(float max) const;
};

// How often each token occurs among the last `capacity` ones (capacity < 0: among all).
class TokenHistory {
 public:
  struct Count {
    Token token = kNoToken;
    int n = 0;
  };

  explicit TokenHistory(int capacity);
  void push(Token token);
  void clear();
  std::span<const Count> counts() const { return counts_; }  // ascending by token

 private:
  void count(Token token);
  void uncount(Token token);

  int capacity_;
  std::vector<Token> ring_;  // grows to `capacity`; unused when all tokens count
  size_t oldest_ = 0;
  std::vector<Count> counts_;
};

}  // namespace kve
