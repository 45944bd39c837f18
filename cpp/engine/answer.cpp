#include "engine/answer.h"

#include <limits>

#include "base/error.h"

namespace kve {
namespace {

SamplingOptions sampling_for(const Model& model, const GenerateOptions& options) {
  const Tokenizer& tokenizer = model.tokenizer();
  options.sampling.validate(model.spec().vocab_size);
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

Answer::Answer(const Model& model, const GenerateOptions& options)
    : tokenizer_(model.tokenizer()),
      options_(options),
      sampler_(sampling_for(model, options)),
      stops_(options.stop) {
  if (options.max_tokens < -1) {
    throw ConfigError(
        message("max_tokens: expected -1 (no limit) or more, found ", options.max_tokens));
  }
  if (options.draft.max_tokens < 0) {
    throw ConfigError(
        message("draft: expected at least 0 tokens at a time, found ", options.draft.max_tokens));
  }
}

void Answer::read(std::span<const Token> tokens) {
  for (const Token token : tokens) sampler_.accept(token);
}

std::optional<Piece> Answer::draw(std::span<const float> logits) {
  const Sampled sampled = sampler_.sample(logits);
  if (tokenizer_.is_end_of_generation(sampled.token)) return finish("stop");

  sampler_.accept(sampled.token);
  ++generated_;
  // Ids beyond the vocabulary are padding rows of the output matrix and have no text.
  const std::string bytes = sampled.token < tokenizer_.vocab_size()
                                ? tokenizer_.piece(sampled.token, options_.render_special)
                                : std::string();
  Piece piece{stops_.push(utf8_.push(bytes)), sampled.token, sampled.logprob};
  if (stops_.stopped()) finish_reason_ = "stop";
  return piece;
}

// Text that was held back comes as one last piece without a token.
std::optional<Piece> Answer::finish(std::string_view reason) {
  std::string text = stops_.push(utf8_.flush());
  text += stops_.finish();
  finish_reason_ = reason;
  if (text.empty()) return std::nullopt;
  return Piece{std::move(text), kNoToken, 0};
}

}  // namespace kve
