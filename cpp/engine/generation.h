// Text out of a session, one token at a time.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "engine/answer.h"
#include "engine/session.h"

namespace kve {

// Reads the prompt when made; every next() samples, then feeds, one token. The session must outlive
// it and not be used by others meanwhile. What has been yielded is held by the session (the last
// token only once the following one is asked for): with speculation the session looks ahead, but
// accepts a token only when it is fed.
class Generation {
 public:
  // Throws ConfigError (options; an empty prompt in an empty session), CapacityError (prompt
  // longer than the context).
  Generation(Session& session, std::span<const Token> prompt, const GenerateOptions& options,
             const Progress& progress = {});

  // Empty at the end; finish_reason() then says why.
  std::optional<Piece> next();

  // "": still going. "stop": end token or stop string. "length": max_tokens or context full.
  std::string_view finish_reason() const { return answer_.finish_reason(); }
  int prompt_tokens() const { return prompt_tokens_; }
  int generated_tokens() const { return answer_.generated_tokens(); }
  // Speculation: tokens that were guessed and computed, and those of them that came.
  int drafted_tokens() const { return speculation_ ? speculation_->drafted() : 0; }
  int accepted_tokens() const { return speculation_ ? speculation_->accepted() : 0; }
  // Seconds spent reading the prompt, and sampling and decoding since.
  double prompt_seconds() const { return prompt_seconds_; }
  double decode_seconds() const { return decode_seconds_; }

 private:
  std::optional<Piece> step();
  void feed();

  Session& session_;
  Answer answer_;
  std::optional<Speculation> speculation_;
  Token pending_ = kNoToken;  // sampled, not fed yet
  int prompt_tokens_ = 0;
  double prompt_seconds_ = 0;
  double decode_seconds_ = 0;
};

}  // namespace kve
