#include "engine/batch_generation.h"

#include <algorithm>

#include "base/error.h"
#include "engine/stopwatch.h"

namespace kve {

int BatchGeneration::add(Session& session, std::span<const Token> prompt,
                         const GenerateOptions& options) {
  if (&session.model() != model_.get()) {
    throw ConfigError("batch: expected a session of its model, found one of another");
  }
  for (const Sequence* other : active_) {
    if (other->session == &session) {
      throw ConfigError(message("batch: expected a session for every sequence, found that of ",
                                other->id, " again"));
    }
    if (other->session->options().exact != session.options().exact) {
      throw ConfigError("batch: expected sessions of one precision, found exact ones and others");
    }
  }
  if (options.draft.max_tokens > 0) {
    throw ConfigError("batch: expected no speculation, which is for a single answer, found draft");
  }
  if (prompt.empty() && !session.last_logits()) {
    throw ConfigError("prompt: expected at least one token, found none");
  }
  if (!prompt.empty()) session.check(prompt);
  Sequence sequence{.id = next_id_,
                    .session = &session,
                    .answer = Answer(*model_, options),
                    .unread = {prompt.begin(), prompt.end()},
                    .prompt_tokens = static_cast<int>(prompt.size()),
                    .error = {}};
  sequence.answer.read(session.tokens());
  sequence.answer.read(prompt);
  active_.reserve(active_.size() + 1);
  active_.push_back(&sequences_.emplace(next_id_, std::move(sequence)).first->second);
  return next_id_++;
}

const BatchGeneration::Sequence& BatchGeneration::at(int id) const {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) {
    throw ConfigError(message("sequence: expected one that was added and not removed, found ", id));
  }
  return found->second;
}

int BatchGeneration::active() const { return static_cast<int>(active_.size()); }

void BatchGeneration::remove(int id) {
  std::erase(active_, &at(id));
  sequences_.erase(id);
}

void BatchGeneration::end(Sequence& sequence, std::string_view reason) {
  if (auto piece = sequence.answer.finish(reason)) {
    outputs_.push_back({sequence.id, *std::move(piece)});
  }
  sequence.session = nullptr;
  sequence.unread = {};
}

std::span<const BatchGeneration::Output> BatchGeneration::step() {
  outputs_.clear();
  {
    const Stopwatch watch(prompt_seconds_);
    read_prompts();
  }
  const Stopwatch watch(decode_seconds_);
  feed();
  for (Sequence* sequence : active_) {
    if (sequence->session != nullptr && sequence->unread.empty()) draw(*sequence);
  }
  std::erase_if(active_, [](const Sequence* sequence) { return sequence->session == nullptr; });
  return outputs_;
}

// The next chunks of prompts, as many as fit one pass: the others' next tokens wait for it.
void BatchGeneration::read_prompts() {
  std::vector<Sequence*> readers;
  std::vector<BatchInput> inputs;
  size_t total = 0;
  for (Sequence* sequence : active_) {
    if (sequence->unread.empty()) continue;
    const auto most = static_cast<size_t>(sequence->session->options().n_batch);
    const size_t n = std::min(most, sequence->unread.size());
    if (!inputs.empty() && total + n > most) continue;
    total += n;
    readers.push_back(sequence);
    inputs.push_back({.session = sequence->session,
                      .tokens = std::span(sequence->unread).first(n),
                      .prompt_goes_on = n < sequence->unread.size()});
  }
  if (inputs.empty()) return;
  forward(readers, inputs);
  for (size_t i = 0; i < readers.size(); ++i) {
    std::vector<Token>& unread = readers[i]->unread;
    if (readers[i]->session == nullptr) continue;
    unread.erase(unread.begin(), unread.begin() + static_cast<ptrdiff_t>(inputs[i].tokens.size()));
  }
}

void BatchGeneration::feed() {
  std::vector<Sequence*> fed;
  std::vector<BatchInput> inputs;
  for (Sequence* sequence : active_) {
    if (sequence->session == nullptr || sequence->pending == kNoToken) continue;
    const bool full = sequence->session->n_tokens() >= sequence->session->n_ctx();
    if (full || sequence->answer.at_max_tokens()) {
      end(*sequence, "length");
      continue;
    }
    fed.push_back(sequence);
    inputs.push_back({sequence->session, {&sequence->pending, 1}});
  }
  if (!inputs.empty()) forward(fed, inputs);
}

void BatchGeneration::draw(Sequence& sequence) {
  if (sequence.answer.at_max_tokens()) {  // none were asked for
    end(sequence, "length");
    return;
  }
  std::optional<Piece> piece;
  try {
    piece = sequence.answer.draw(sequence.session->last_logits()->last());
  } catch (const Error& error) {
    sequence.error = error.what();
    end(sequence, "error");
    return;
  }
  if (piece) {
    sequence.pending = piece->token;
    outputs_.push_back({sequence.id, *std::move(piece)});
  }
  if (!sequence.answer.finish_reason().empty()) sequence.session = nullptr;
}

void BatchGeneration::forward(std::span<Sequence* const> sequences,
                              std::span<const BatchInput> inputs) {
  std::vector<int> before;
  for (const BatchInput& input : inputs) before.push_back(input.session->n_tokens());
  std::string failure;
  try {
    forward_batch(inputs);
    return;
  } catch (const Error& error) {
    failure = error.what();
    // Each alone then, to find out which of them fails.
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].session->n_tokens() != before[i]) {  // was in an earlier pass
      if (inputs[i].prompt_goes_on || inputs[i].session->last_logits()) continue;
      sequences[i]->error = failure;  // its prompt was read, but could not be repeated
      end(*sequences[i], "error");
      continue;
    }
    try {
      forward_batch(inputs.subspan(i, 1));
    } catch (const Error& error) {
      sequences[i]->error = error.what();
      end(*sequences[i], "error");
    }
  }
}

}  // namespace kve
