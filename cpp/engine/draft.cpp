#include "engine/draft.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/printable.h"
#include "kernels/few_rows.h"
#include "text/tokenizer.h"

namespace kve {
namespace {

constexpr size_t kFirstSlots = 1 << 12;
constexpr int kMostCandidates = 64;  // places of a pair that are looked at
constexpr int kMostPause = 63;

void check_vocabulary(const Model& draft, const Model& target) {
  const auto& ours = draft.tokenizer().vocabulary().pieces;
  const auto& theirs = target.tokenizer().vocabulary().pieces;
  if (ours.size() != theirs.size()) {
    throw ConfigError(message("draft model: expected the vocabulary of the model, ", theirs.size(),
                              " tokens, found one of ", ours.size()));
  }
  const auto [mine, other] = std::mismatch(ours.begin(), ours.end(), theirs.begin());
  if (mine == ours.end()) return;
  throw ConfigError(message("draft model: expected the vocabulary of the model, found ",
                            quoted(*mine), " instead of ", quoted(*other), " as token ",
                            mine - ours.begin()));
}

}  // namespace

void LookupDrafter::read(std::span<const Token> tokens) {
  for (const Token token : tokens) {
    text_.push_back(token);
    // Positions come into the index once something follows them.
    if (text_.size() >= 3) index(text_.size() - 2);
  }
}

// Of the pair that ends at `position`.
size_t LookupDrafter::slot(size_t position) const {
  const auto pair = static_cast<uint64_t>(static_cast<uint32_t>(text_[position - 1])) << 32 |
                    static_cast<uint32_t>(text_[position]);
  return static_cast<size_t>((pair * 0x9e3779b97f4a7c15u) >> 32) & (latest_.size() - 1);
}

void LookupDrafter::index(size_t position) {
  if (latest_.size() < text_.size()) grow();
  previous_.resize(position + 1);
  uint32_t& latest = latest_[slot(position)];
  previous_[position] = std::exchange(latest, static_cast<uint32_t>(position + 1));
}

void LookupDrafter::grow() {
  latest_.assign(std::max(kFirstSlots, 2 * latest_.size()), 0);
  for (size_t position = 1; position < previous_.size(); ++position) {
    uint32_t& latest = latest_[slot(position)];
    previous_[position] = std::exchange(latest, static_cast<uint32_t>(position + 1));
  }
}

// Tokens up to `position` that equal the latest ones.
int LookupDrafter::match_length(size_t position) const {
  int n = 0;
  const auto most = std::min<size_t>(kMostMatch, position + 1);
  while (static_cast<size_t>(n) < most && text_[position - static_cast<size_t>(n)] ==
                                              text_[text_.size() - 1 - static_cast<size_t>(n)]) {
    ++n;
  }
  return n;
}

void LookupDrafter::guess(const Sampler&, int n, std::vector<Token>* out) {
  if (text_.size() < 3) return;
  int longest = kLeastMatch - 1;
  size_t found = 0;
  uint32_t link = latest_[slot(text_.size() - 1)];
  for (int i = 0; link != 0 && i < kMostCandidates && longest < kMostMatch; ++i) {
    const int length = match_length(link - 1);
    if (length > longest) {
      longest = length;
      found = link;  // the position after the match
    }
    link = previous_[link - 1];
  }
  if (longest < kLeastMatch) return;
  // What follows may run into what is guessed here: a text that repeats itself goes on repeating.
  const size_t first = out->size();
  for (size_t i = found; i < found + static_cast<size_t>(n); ++i) {
    out->push_back(i < text_.size() ? text_[i] : (*out)[first + i - text_.size()]);
  }
}

ModelDrafter::ModelDrafter(std::shared_ptr<Session> session, const Model& target)
    : session_(std::move(session)), target_vocab_size_(target.spec().vocab_size) {
  check_vocabulary(session_->model(), target);
}

void ModelDrafter::read(std::span<const Token> tokens) {
  text_.insert(text_.end(), tokens.begin(), tokens.end());
  const int known = session_->model().spec().vocab_size;
  unknown_ |= std::ranges::any_of(tokens, [known](Token token) { return token >= known; });
}

void ModelDrafter::prepare(const Progress& progress) {
  if (text_.empty() || unknown_ || static_cast<int>(text_.size()) > session_->n_ctx()) return;
  if (session_->last_logits() && std::ranges::equal(session_->tokens(), text_)) return;
  const int held = session_->reuse_prefix(text_);
  session_->forward(std::span(text_).subspan(static_cast<size_t>(held)), false, progress);
}

void ModelDrafter::guess(const Sampler& sampler, int n, std::vector<Token>* out) {
  n = std::min(n, session_->n_ctx() - static_cast<int>(text_.size()) + 1);
  if (n <= 0 || text_.empty() || unknown_) return;
  prepare({});
  const Tokenizer& tokenizer = session_->model().tokenizer();
  Sampler draws = sampler;
  draws.skip_logprobs();
  for (int i = 0; i < n; ++i) {
    const Token token = draws.sample(session_->last_logits()->last()).token;
    if (token >= target_vocab_size_) return;
    out->push_back(token);
    if (i + 1 == n || tokenizer.is_end_of_generation(token)) return;
    draws.accept(token);
    session_->forward({&token, 1});
  }
}

int DraftLength::next() {
  if (pause_ == 0) return length_;
  --pause_;
  return 0;
}

void DraftLength::report(int guessed, int accepted) {
  if (accepted == guessed) {
    length_ = std::min(most_, 2 * length_);
  } else {
    length_ = std::max(1, std::min(most_, accepted + 1));
  }
  if (accepted > 0) {
    failures_ = 0;
  } else {
    pause_ = std::min(2 * failures_ * failures_, kMostPause);
    ++failures_;
  }
}

Speculation::Speculation(const DraftOptions& options, const Model& target)
    : length_(std::min(options.max_tokens, kFewRows - 1)) {
  if (options.session) {
    drafter_ = std::make_unique<ModelDrafter>(options.session, target);
  } else {
    drafter_ = std::make_unique<LookupDrafter>();
  }
}

void Speculation::look_ahead(Session& session, Token pending, const Sampler& sampler, int most) {
  if (ahead_.size() > 1)
    length_.report(static_cast<int>(ahead_.size()) - 1, std::max(0, taken_ - 1));
  ahead_.assign(1, pending);
  taken_ = 0;
  const int n = std::min({length_.next(), most, session.max_ahead() - 1});
  if (n > 0) drafter_->guess(sampler, n, &ahead_);
  if (ahead_.size() == 1) return;
  session.look_ahead(ahead_);
  drafted_ += static_cast<int>(ahead_.size()) - 1;
}

void Speculation::accept() {
  if (taken_++ > 0) ++accepted_;
}

}  // namespace kve
