// Several answers of one model, decoded together so that they share the reads of its weights.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/answer.h"
#include "engine/forward_batch.h"
#include "engine/session.h"

namespace kve {

// Sequences may be added and removed between steps, each with its own session, options and end;
// what serves many users calls step() in a loop.
//
// A sequence gets the tokens it would get alone, as far as kernels give a row the same bits
// whatever the other rows are: in decode passes of up to kFewRows sequences (with repacked weights,
// or exact). Prompts that share a pass, and more sequences, may differ in the last bits. Never does
// another sequence's content matter.
class BatchGeneration {
 public:
  struct Output {
    int id = 0;  // of the sequence
    Piece piece;
  };

  explicit BatchGeneration(std::shared_ptr<Model> model) : model_(std::move(model)) {}

  // A new sequence: an answer to `prompt` (read by the next steps) that goes on in `session`, which
  // must outlive the sequence and not be used by others meanwhile. Returns its id: 0, 1, ...
  // Throws ConfigError (options; session of another model or used by another sequence; unknown
  // tokens; an empty prompt in an empty session), CapacityError (prompt longer than the context).
  int add(Session& session, std::span<const Token> prompt, const GenerateOptions& options);
  // Forgets a sequence, whether it has ended or not; what it generated stays in its session.
  void remove(int id);

  // Reads more of the prompts (one forward pass), then decodes one token of every sequence whose
  // prompt has been read (one pass), and returns the pieces, at most one for each sequence and
  // valid until the next call. Of a sequence whose pass fails the finish_reason() is "error"; the
  // others go on.
  std::span<const Output> step();
  // Sequences that have not ended.
  int active() const;

  // As Generation has them, and "error".
  std::string_view finish_reason(int id) const { return at(id).answer.finish_reason(); }
  const std::string& error(int id) const { return at(id).error; }  // "" unless it failed
  int prompt_tokens(int id) const { return at(id).prompt_tokens; }
  int generated_tokens(int id) const { return at(id).answer.generated_tokens(); }
  // Seconds of all steps, spent on prompts and on decoding.
  double prompt_seconds() const { return prompt_seconds_; }
  double decode_seconds() const { return decode_seconds_; }

 private:
  struct Sequence {
    int id;
    Session* session;  // null once it has ended
    Answer answer;
    std::vector<Token> unread;  // of the prompt
    Token pending = kNoToken;   // drawn, not fed yet
    int prompt_tokens = 0;
    std::string error;
  };

  const Sequence& at(int id) const;
  void read_prompts();
  void feed();
  void draw(Sequence& sequence);
  void end(Sequence& sequence, std::string_view reason);
  // Reads inputs[i] into the session of sequences[i]; those that fail end with an error.
  void forward(std::span<Sequence* const> sequences, std::span<const BatchInput> inputs);

  std::shared_ptr<Model> model_;
  std::map<int, Sequence> sequences_;  // until they are removed
  std::vector<Sequence*> active_;      // those that have not ended
  int next_id_ = 0;
  std::vector<Output> outputs_;
  double prompt_seconds_ = 0;
  double decode_seconds_ = 0;
};

}  // namespace kve
