// sampling/ turns a row of logits into a token, and the text of the tokens into "stop here".
//
// A Sampler applies a fixed list of stages (stages.cpp) to one row of logits, in the order of
// llama.cpp's defaults:
//   logit_bias, penalties, top_k, typical_p, top_p, min_p, temperature, draw.
// The truncating stages therefore look at the distribution at temperature 1. With temperature <= 0
// the token is the arg-max after logit_bias and penalties, and no random number is consumed.
// Results are bit-identical on every machine: see weights.h and base/random.h.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "base/random.h"
#include "base/token.h"
#include "sampling/candidates.h"

namespace kve {

struct SamplingOptions {
  float temperature = 0.8f;     // finite; <= 0 is greedy
  int top_k = 40;               // keep the k likeliest; <= 0: off
  float top_p = 0.95f;          // [0, 1]: keep the likeliest that reach this mass; 1: off
  float min_p = 0.05f;          // [0, 1]: drop what is below min_p * likeliest; 0: off
  float typical_p = 1;          // [0, 1]: locally typical sampling, arXiv:2202.00666; 1: off
  float repeat_penalty = 1;     // > 0: divides positive logits of seen tokens, multiplies others
  int repeat_last_n = 64;       // tokens the penalties look back; 0: none, -1: all
  float presence_penalty = 0;   // subtracted once from the logit of every seen token
  float frequency_penalty = 0;  // subtracted once for each time the token was seen
  std::vector<std::pair<Token, float>> logit_bias;  // added to logits; -infinity bans a token
  uint64_t seed = 0;
  int min_keep = 1;      // no stage leaves fewer candidates than this
  bool logprobs = true;  // false saves a pass of exp over the vocabulary

  // Throws ConfigError naming the option, what is allowed and what was found. With a vocab_size
  // the ids in logit_bias are checked against it.
  void validate(int vocab_size = 0) const;
};

struct Sampled {
  Token token = kNoToken;
  // Natural log of the token's probability under the unmodified logits; NaN without `logprobs`.
  float logprob = std::numeric_limits<float>::quiet_NaN();
};

// Copyable: a copy continues exactly as the original would. One thread at a time.
class Sampler {
 public:
  explicit Sampler(SamplingOptions options);  // throws ConfigError as validate() does

  // Adds a token (of the prompt, or one that was generated) to the penalties' history.
  void accept(Token token);

  // logits: [vocab_size]; -infinity marks a token that cannot come. Throws Error when the row is
  // empty, contains NaN or +infinity, or leaves no token possible. Does not call accept().
  // Allocates only when the row is longer than any before.
  Sampled sample(std::span<const float> logits);

  // From now on as with `logprobs` off.
  void skip_logprobs() { options_.logprobs = false; }

  // Forgets the history and starts the draws again.
  void reset();

  const SamplingOptions& options() const { return options_; }

 private:
  // Applies the stages that shape logits, or those that narrow the draw; false when all are off.
  bool run_stages(bool shaping);

  SamplingOptions options_;
  Random random_;
  TokenHistory history_;
  Candidates candidates_;  // scratch
};

}  // namespace kve
