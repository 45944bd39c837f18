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
  if (options.draft.max_tokens > 0) speculation_.emplace(options.draft, session.model());
  const Stopwatch watch(prompt_seconds_);
  for (const std::span<const Token> known : {session.tokens(), prompt}) {
    answer_.read(known);
    if (speculation_) speculation_->read(known);
  }
  if (!prompt.empty()) session.forward(prompt, false, progress);
  if (!speculation_) return;
  // What a smaller model reads is not told as progress, but may be cancelled.
  speculation_->prepare([&](int64_t, int64_t) {
    const auto n = static_cast<int64_t>(prompt.size());
    return !progress || progress(n, n);
  });
}

std::optional<Piece> Generation::next() {
  if (!finish_reason().empty()) return std::nullopt;
  const Stopwatch watch(decode_seconds_);
  return step();
}

std::optional<Piece> Generation::step() {
  const bool full = pending_ != kNoToken && session_.n_tokens() >= session_.n_ctx();
  if (full || answer_.at_max_tokens()) return answer_.finish("length");
  if (pending_ != kNoToken) feed();
  std::optional<Piece> piece = answer_.draw(session_.last_logits()->last());
  const Token token = piece ? piece->token : kNoToken;
  const std::span<const Token> ahead = session_.ahead();
  if (!ahead.empty() && (ahead[0] != token || !finish_reason().empty())) session_.drop_ahead();
  if (speculation_ && token != kNoToken) speculation_->read({&token, 1});
  pending_ = token;
  return piece;
}

void Generation::feed() {
  if (speculation_ && session_.ahead().empty()) {
    // What follows the last token that may be drawn need not be known.
    const int most = answer_.tokens_left() - 1;
    speculation_->look_ahead(session_, pending_, answer_.sampler(), most);
  }
  if (session_.ahead().empty()) {
    session_.forward({&pending_, 1});
  } else {
    session_.accept(1);
    speculation_->accept();
  }
  pending_ = kNoToken;
}

}  // namespace kve
