#include "engine/generation.h"

#include <chrono>
#include <limits>

#include "base/error.h"

namespace kve {
namespace {

// Adds the time until it is destroyed to a counter.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() {
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

SamplingOptions sampling_for(const Session& session, const GenerateOptions& options) {
  const Tokenizer& tokenizer = session.model().tokenizer();
  options.sampling.validate(session.model().spec().vocab_size);
  SamplingOptions sampling = options.sampling;
  if (options.ignore_eos) {
    for (Token token = 0; token < tokenizer.vocab_size(); ++token) {
      if (tokenizer.is_end_of_generation(token)) {
        sampling.logit_bias.emplace_back(token, -std::numeric_limits<float>::infinity());
      }
    }
  }
  return sampling;
}

}  // namespace

Generation::Generation(Session& session, std::span<const Token> prompt,
                       const GenerateOptions& options, const Progress& progress)
    : session_(session),
      options_(options),
      sampler_(sampling_for(session, options)),
      stops_(options.stop),
      prompt_tokens_(static_cast<int>(prompt.size())) {
  if (options.max_tokens < -1) {
    throw ConfigError(
        message("max_tokens: expected -1 (no limit) or more, found ", options.max_tokens));
  }
  if (prompt.empty() && !session.last_logits()) {
    throw ConfigError("prompt: expected at least one token, found none");
  }
  const Stopwatch watch(prompt_seconds_);
  for (const Token token : session.tokens()) sampler_.accept(token);
  if (!prompt.empty()) session.forward(prompt, false, progress);
  for (const Token token : prompt) sampler_.accept(token);
}

std::optional<Piece> Generation::next() {
  if (!finish_reason_.empty()) return std::nullopt;
  const Stopwatch watch(decode_seconds_);
  return step();
}

std::optional<Piece> Generation::step() {
  const bool full = pending_ != kNoToken && session_.n_tokens() >= session_.n_ctx();
  if (full || generated_ == options_.max_tokens) return finish("length");
  if (pending_ != kNoToken) {
    session_.forward({&pending_, 1});
    pending_ = kNoToken;
  }
  const Sampled sampled = sampler_.sample(session_.last_logits()->last());
  const Tokenizer& tokenizer = session_.model().tokenizer();
  if (tokenizer.is_end_of_generation(sampled.token)) return finish("stop");

  sampler_.accept(sampled.token);
  pending_ = sampled.token;
  ++generated_;
  // Ids beyond the vocabulary are padding rows of the output matrix and have no text.
  const std::string bytes = sampled.token < tokenizer.vocab_size()
                                ? tokenizer.piece(sampled.token, options_.render_special)
                                : std::string();
  Piece piece{stops_.push(utf8_.push(bytes)), sampled.token, sampled.logprob};
  if (stops_.stopped()) finish_reason_ = "stop";
  return piece;
}

// Text that was held back comes as one last piece without a token.
std::optional<Piece> Generation::finish(std::string_view reason) {
  std::string text = stops_.push(utf8_.flush());
  text += stops_.finish();
  finish_reason_ = reason;
  if (text.empty()) return std::nullopt;
  return Piece{std::move(text), kNoToken, 0};
}

}  // namespace kve
