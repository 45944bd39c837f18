// What a model is asked to read after a prompt so that it repeats it, part by part, for caches that
// keep what that takes (KVzip, arXiv 2505.23416).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/token.h"

namespace kve {

class Model;

class PromptRepeat {
 public:
  // A prompt of n_tokens, in parts of `chunk` tokens.
  PromptRepeat(const Model& model, int chunk, int n_tokens);

  int n_parts() const { return (n_tokens_ + chunk_ - 1) / chunk_; }
  // Positions [first, end).
  struct Part {
    int first;
    int end;
  };
  Part part(int index) const;
  // An instruction, the end of the part before (but for the first part), what a chat puts between
  // a question and its answer, and the part itself. prompt [n_tokens].
  std::vector<Token> tokens(int index, std::span<const Token> prompt) const;
  // Of all parts.
  int64_t total() const;

 private:
  int chunk_;
  int n_tokens_;
  std::vector<Token> whole_;  // the instruction of the first part
  std::vector<Token> from_;   // that of the others
  std::vector<Token> answer_;
};

}  // namespace kve
