#include "engine/generation.h"

#include "base/error.h"
#include "engine/stopwatch.h"

namespace kve {

Generation::Generation(Session& session, std::span<const Token> prompt,
                       const GenerateOptions& options, const Progress& progress)
    : session_(session),
      answer_(session.model(), options),
      prompt_tokens_(static_cast<int>(prompt.size())) {
  if (prompt.empty() && !session.last_logits()) {
    throw ConfigError("prompt: expected at least one token, found none");
  }
  const Stopwatch watch(prompt_seconds_);
  answer_.read(session.tokens());
  if (!prompt.empty()) session.forward(prompt, false, progress);
  answer_.read(prompt);
}

std::optional<Piece> Generation::next() {
  if (!finish_reason().empty()) return std::nullopt;
  const Stopwatch watch(decode_seconds_);
  return step();
}

std::optional<Piece> Generation::step() {
  const bool full = pending_ != kNoToken && session_.n_tokens() >= session_.n_ctx();
  if (full || answer_.at_max_tokens()) return answer_.finish("length");
  if (pending_ != kNoToken) {
    session_.forward({&pending_, 1});
    pending_ = kNoToken;
  }
  std::optional<Piece> piece = answer_.draw(session_.last_logits()->last());
  if (piece) pending_ = piece->token;
  return piece;
}

}  // namespace kve
