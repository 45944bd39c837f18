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

// Likeliest first; equal logits by ascending id, so that any sorting algorithm gives one result.
inline bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Between stages the order of `items` is a function of the input alone (ascending ids, likeliest
// first or most typical first): sums over them are then the same everywhere.
struct Candidates {
  std::vector<Candidate> items;
  std::vector<double> weights;     // scratch of update_weights, parallel to items
  std::vector<Candidate> ordered;  // scratch of the stages that reorder
  size_t n_sorted = 0;             // items[0, n_sorted) are the likeliest, likeliest first
  float temperature = 1;

  // Starts a row: every token a candidate, in ascending order of id.
  void assign(std::span<const float> logits);
  // Makes the first n items (or all) the n likeliest, likeliest first.
  void sort_likeliest(size_t n);
  // Keeps the first n items.
  void keep(size_t n);
  float max_logit() const;
  // weights[i] = exp((logit[i] - max) / temperature). Returns their sum, which is >= 1 unless all
  // logits are -infinity.
  double update_weights();
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
  void remove_oldest();

  int capacity_;
  std::vector<Token> ring_;  // unused when capacity < 0
  size_t oldest_ = 0;
  std::vector<Count> counts_;
};

}  // namespace kve
