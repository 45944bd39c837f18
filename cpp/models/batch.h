// What one forward pass computes: consecutive new tokens of one or more sequences.
#pragma once

#include <span>

#include "base/span.h"
#include "base/token.h"
#include "cache/kv_cache.h"

namespace kve {

struct Batch {
  struct Slice {
    KvCache* cache = nullptr;
    std::span<const Token> tokens;  // at positions first_position() ...
    Mat logits;                     // [1 or tokens.size() or 0, vocab_size]: of the last tokens
    bool commit = true;             // false: the tokens stay appended, for the caller to commit
    bool prompt_goes_on = false;    // further tokens of the same prompt follow
    int behind = 0;  // tokens that earlier passes left appended: positions are those after them

    int first_position() const { return cache->next_position() + behind; }
  };
  std::span<const Slice> slices;
  bool exact = false;  // f32 activations

  int64_t n_tokens() const {
    int64_t n = 0;
    for (const Slice& slice : slices) n += static_cast<int64_t>(slice.tokens.size());
    return n;
  }
};

}  // namespace kve
