// One answer, apart from the session that reads it: draws tokens, turns them into text, and knows
// when to end.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/token.h"
#include "engine/draft.h"
#include "engine/model.h"
#include "sampling/sampler.h"
#include "sampling/stop_matcher.h"
#include "text/tokenizer.h"

namespace kve {

struct GenerateOptions {
  int max_tokens = -1;  // -1: until the context is full
  SamplingOptions sampling;
  std::vector<std::string> stop;  // stop strings, not part of the text
  bool ignore_eos = false;        // never sample a token that ends the answer
  bool render_special = false;    // spell control tokens out in the text
  DraftOptions draft;             // speculation: off unless asked for
};

// The text is complete UTF-8; it may be empty while a character or a possible stop string is
// incomplete. `token` is kNoToken in a last piece that only carries text held back until then.
struct Piece {
  std::string text;
  Token token = kNoToken;
  float logprob = 0;  // natural log, under the unmodified distribution
};

class Answer {
 public:
  // Throws ConfigError. The model must outlive it.
  Answer(const Model& model, const GenerateOptions& options);

  // Tells of tokens that come before the answer: penalties look back on them.
  void read(std::span<const Token> tokens);

  // Draws the next token from the logits after all tokens so far. Nothing when the answer ends
  // without another piece of text. Not to be called after the end.
  std::optional<Piece> draw(std::span<const float> logits);
  // Ends the answer; returns the text that was held back, if any.
  std::optional<Piece> finish(std::string_view reason);

  bool at_max_tokens() const { return generated_ == options_.max_tokens; }
  // Tokens that may still be drawn.
  int tokens_left() const {
    return options_.max_tokens < 0 ? INT32_MAX : options_.max_tokens - generated_;
  }
  int generated_tokens() const { return generated_; }
  // "": still going. "stop": end token or stop string. Otherwise what finish() was told.
  std::string_view finish_reason() const { return finish_reason_; }
  const Sampler& sampler() const { return sampler_; }

 private:
  const Tokenizer& tokenizer_;
  GenerateOptions options_;
  Sampler sampler_;
  StopMatcher stops_;
  Utf8Stream utf8_;
  std::string_view finish_reason_;
  int generated_ = 0;
};

}  // namespace kve
