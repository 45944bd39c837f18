// Speculative decoding: tokens that may come next are guessed, one forward pass computes the logits
// after each of them, and those that the sampler then draws anyway are kept.
//
// Tokens are always drawn from the model's own logits, by the sampler and the random numbers that
// would draw them without guesses: what is guessed changes the speed, never the text. (Accepting a
// guess with the probability of being drawn, and drawing another token otherwise, is what
// arXiv:2211.17192 does for a draft distribution with a single token.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/token.h"
#include "engine/session.h"
#include "sampling/sampler.h"

namespace kve {

struct DraftOptions {
  // Most tokens guessed for one forward pass; 0: no speculation. No more than kFewRows - 1 are
  // used: so many rows are computed as if each were alone.
  int max_tokens = 0;
  // Of a smaller model with the same vocabulary, which guesses; it may hold anything, and is not to
  // be used by others meanwhile. Null: prompt lookup.
  std::shared_ptr<Session> session;
};

// Guesses how a text goes on.
class Drafter {
 public:
  virtual ~Drafter() = default;
  // Tells of the next tokens of the text.
  virtual void read(std::span<const Token> tokens) = 0;
  // Before the first guess: does what takes long. Throws CancelledError when `progress` says so.
  virtual void prepare(const Progress& progress) = 0;
  // Adds up to n tokens that may follow. `sampler` is about to draw the first of them.
  virtual void guess(const Sampler& sampler, int n, std::vector<Token>* out) = 0;
};

// Prompt lookup (arXiv:2304.04487; Saxena, "Prompt Lookup Decoding"): what followed the last time
// that the text had the same latest tokens. Of the recent places, the one with the longest match.
class LookupDrafter final : public Drafter {
 public:
  static constexpr int kLeastMatch = 2;  // tokens
  static constexpr int kMostMatch = 16;

  void read(std::span<const Token> tokens) override;
  void prepare(const Progress&) override {}
  void guess(const Sampler& sampler, int n, std::vector<Token>* out) override;

 private:
  size_t slot(size_t position) const;
  void index(size_t position);
  void grow();
  int match_length(size_t position) const;

  std::vector<Token> text_;
  // Chains of the positions where the same pair of tokens ends, latest first, as in LZ77: a step
  // costs the same however long the text is. Positions are stored plus 1; 0 ends a chain.
  std::vector<uint32_t> latest_;    // [a power of two], by slot
  std::vector<uint32_t> previous_;  // [indexed positions]
};

// A smaller model reads the text and goes on with it. It draws with a copy of the sampler, which is
// likely to draw the same tokens, also at a temperature, as the random numbers are the same.
class ModelDrafter final : public Drafter {
 public:
  // Throws ConfigError unless the vocabularies are equal.
  ModelDrafter(std::shared_ptr<Session> session, const Model& target);

  void read(std::span<const Token> tokens) override;
  void prepare(const Progress& progress) override;
  void guess(const Sampler& sampler, int n, std::vector<Token>* out) override;

 private:
  std::shared_ptr<Session> session_;
  std::vector<Token> text_;
  int target_vocab_size_;
  bool unknown_ = false;  // the text has a token that the smaller model does not know
};

// How many tokens to guess next: more while guesses are right, fewer while they are wrong, and none
// for a while after several that failed from the first token on, so that decoding is hardly slower
// for a text that cannot be guessed.
class DraftLength {
 public:
  explicit DraftLength(int most) : most_(most), length_(std::min(most, 3)) {}
  int next();
  void report(int guessed, int accepted);

 private:
  int most_;
  int length_;
  int failures_ = 0;  // in a row
  int pause_ = 0;     // tokens to decode without guesses
};

// One generation's guesses and what became of them.
class Speculation {
 public:
  // Throws ConfigError (options; another vocabulary).
  Speculation(const DraftOptions& options, const Model& target);

  void read(std::span<const Token> tokens) { drafter_->read(tokens); }
  void prepare(const Progress& progress) { drafter_->prepare(progress); }
  // Makes the session look ahead at `pending` and up to `most` guesses, unless there are none.
  // `pending` has been read here, but not by the session.
  void look_ahead(Session& session, Token pending, const Sampler& sampler, int most);
  // The next token of what is ahead was accepted.
  void accept();

  int drafted() const { return drafted_; }
  int accepted() const { return accepted_; }

 private:
  std::unique_ptr<Drafter> drafter_;
  DraftLength length_;
  std::vector<Token> ahead_;  // the pending token, then guesses
  int taken_ = 0;             // of ahead_
  int drafted_ = 0;
  int accepted_ = 0;
};

}  // namespace kve
