#include "engine/forward_batch.h"

#include <algorithm>
#include <exception>
#include <functional>

#include "base/error.h"
#include "engine/prompt_repeat.h"
#include "models/batch.h"

namespace kve {
// An input and how far it has been read.
struct Session::Reading {
  Reading(const BatchInput& input, const std::function<void(int64_t)>& report_)
      : session(input.session),
        tokens(input.tokens),
        all_logits(input.all_logits),
        prompt_goes_on(input.prompt_goes_on),
        report(report_) {
    session->drop_ahead();
    session->reserve_tokens(tokens.size());
    logits = session->logits_buffer(all_logits ? std::ssize(tokens) : 1);
    if (!prompt_goes_on) repeat = session->repeat_after(tokens.size());
  }

  // The next chunks of those that have not finished, as many as fit `most` tokens but at least one.
  static std::vector<Reading*> choose(std::vector<Reading>& readings, size_t most) {
    std::vector<Reading*> chosen;
    size_t n = 0;
    for (Reading& reading : readings) {
      if (reading.finished()) continue;
      if (!chosen.empty() && n + reading.chunk() > most) continue;
      n += reading.chunk();
      chosen.push_back(&reading);
    }
    return chosen;
  }

  size_t chunk() const {
    return static_cast<size_t>(session->next_pass(static_cast<int64_t>(tokens.size() - done)));
  }
  bool finished() const { return done == tokens.size(); }
  int64_t total() const { return std::ssize(tokens) + (repeat ? repeat->total() : 0); }
  Batch::Slice slice() const {
    const auto n = static_cast<int64_t>(chunk());
    const bool goes_on = done + chunk() < tokens.size();
    const Mat all(logits->values.data(), logits->rows, logits->cols);
    return {.cache = &session->cache_,
            .tokens = tokens.subspan(done, chunk()),
            .logits = all_logits ? all.block(static_cast<int64_t>(done), n)
                                 : all.block(0, goes_on ? 0 : 1),
            .prompt_goes_on = goes_on || prompt_goes_on || repeat};
  }
  // The chunk was read.
  void advance() {
    const auto read = tokens.subspan(done, chunk());
    session->tokens_.insert(session->tokens_.end(), read.begin(), read.end());
    done += read.size();
    if (finished() && !repeat) {
      session->keep_last_row(logits);
    } else {
      session->last_row_.reset();  // until its last chunk
    }
  }
  void repeat_prompt() {
    if (!finished() || !repeat) return;
    session->repeat_prompt(*repeat, report);
    session->keep_last_row(logits);
  }

  Session* session;
  std::span<const Token> tokens;
  bool all_logits;
  bool prompt_goes_on;
  std::shared_ptr<Logits> logits;
  std::optional<PromptRepeat> repeat;  // once all tokens are read
  std::function<void(int64_t)> report;
  size_t done = 0;
};

namespace {

void check_together(std::span<const BatchInput> inputs) {
  if (inputs.empty()) throw ConfigError("batch: expected at least one session, found none");
  std::vector<const Session*> sessions;
  const Session& first = *inputs[0].session;
  for (const BatchInput& input : inputs) {
    if (&input.session->model() != &first.model()) {
      throw ConfigError("batch: expected sessions of one model, found several models");
    }
    if (input.session->options().exact != first.options().exact) {
      throw ConfigError("batch: expected sessions of one precision, found exact ones and others");
    }
    sessions.push_back(input.session);
  }
  std::sort(sessions.begin(), sessions.end());
  if (std::adjacent_find(sessions.begin(), sessions.end()) != sessions.end()) {
    throw ConfigError("batch: expected every session once, found one twice");
  }
}

}  // namespace

std::vector<std::shared_ptr<const Logits>> forward_batch(std::span<const BatchInput> inputs,
                                                         const Progress& progress) {
  check_together(inputs);
  for (const BatchInput& input : inputs) input.session->check(input.tokens);
  int64_t done = 0, total = 0;
  const auto report = [&](int64_t n) {
    done += n;
    if (progress && !progress(done, total) && done < total) {
      throw CancelledError(message("cancelled after ", done, " of ", total, " tokens"));
    }
  };
  Model& model = *inputs[0].session->model_;
  std::vector<Session::Reading> readings;
  int n_batch = 1;
  for (const BatchInput& input : inputs) {
    total += readings.emplace_back(input, report).total();
    n_batch = std::max(n_batch, input.session->options().n_batch);
  }
  std::vector<Batch::Slice> slices;
  for (;;) {
    const auto chosen = Session::Reading::choose(readings, static_cast<size_t>(n_batch));
    if (chosen.empty()) break;
    slices.clear();
    for (const Session::Reading* r : chosen) slices.push_back(r->slice());
    Session::run(model, {.slices = slices, .exact = inputs[0].session->options().exact});
    int64_t n = 0;
    for (size_t i = 0; i < chosen.size(); ++i) {
      chosen[i]->advance();
      n += std::ssize(slices[i].tokens);
    }
    report(n);
    // If one prompt cannot be repeated, the others are all the same.
    std::exception_ptr failure;
    for (Session::Reading* r : chosen) {
      try {
        r->repeat_prompt();
      } catch (const CancelledError&) {
        throw;  // of the whole call: other prompts stay whole
      } catch (...) {
        failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
  }
  std::vector<std::shared_ptr<const Logits>> logits;
  for (Session::Reading& reading : readings) logits.push_back(std::move(reading.logits));
  return logits;
}

}  // namespace kve
