// Text out of a session, one token at a time.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/session.h"
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
};

// The text is complete UTF-8; it may be empty while a character or a possible stop string is
// incomplete. `token` is kNoToken in a last piece that only carries text held back until then.
struct Piece {
  std::string text;
  Token token = kNoToken;
  float logprob = 0;  // natural log, under the unmodified distribution
};

// Reads the prompt when made; every next() samples, then feeds, one token. The session must outlive
// it and not be used by others meanwhile. What has been yielded is held by the session (the last
// token only once the following one is asked for).
class Generation {
 public:
  // Throws ConfigError (options; an empty prompt in an empty session), CapacityError (prompt
  // longer than the context).
  Generation(Session& session, std::span<const Token> prompt, const GenerateOptions& options,
             const Progress& progress = {});

  // Empty at the end; finish_reason() then says why.
  std::optional<Piece> next();

  // "": still going. "stop": end token or stop string. "length": max_tokens or context full.
  std::string_view finish_reason() const { return finish_reason_; }
  int prompt_tokens() const { return prompt_tokens_; }
  int generated_tokens() const { return generated_; }
  // Seconds spent reading the prompt, and sampling and decoding since.
  double prompt_seconds() const { return prompt_seconds_; }
  double decode_seconds() const { return decode_seconds_; }

 private:
  std::optional<Piece> finish(std::string_view reason);
  std::optional<Piece> step();

  Session& session_;
  GenerateOptions options_;
  Sampler sampler_;
  StopMatcher stops_;
  Utf8Stream utf8_;
  std::string_view finish_reason_;
  Token pending_ = kNoToken;  // sampled, not fed yet
  int prompt_tokens_ = 0;
  int generated_ = 0;
  double prompt_seconds_ = 0;
  double decode_seconds_ = 0;
};

}  // namespace kve
