// One conversation: its tokens, its cache, and the logits of its last token.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/span.h"
#include "base/token.h"
#include "cache/kv_cache.h"
#include "cache/spec.h"
#include "engine/model.h"

namespace kve {

class PromptRepeat;
struct Batch;
struct BatchInput;
struct SessionState;

struct SessionOptions {
  int n_ctx = 0;       // most tokens the session may hold; 0: what the model was trained for
  CacheSpec cache;     // default f16
  bool exact = false;  // f32 activations instead of int8
  // Tokens per forward pass while reading a prompt; 0: 512 where the cache keeps all rows as they
  // are until the prompt is read, and 256 where it waits for the end of a pass only to seal or to
  // drop them, so that what a pass adds stays small beside it; 0 also allows up to twice as many
  // while so much of a prompt is to follow that the peak of memory is the same (pass_length.h),
  // which session files do not keep. With infllm those of a span, whatever is said.
  int n_batch = 0;
  // Most bytes of the cache, those of forks included (KvCache::limit_memory); 0: no limit. Session
  // files do not keep it.
  int64_t kv_budget = 0;
  // Of the cache's selector `custom`; called while tokens are read. Session files do not keep it.
  RowScorer scorer = {};
};

// Logits of one forward call; kept alive by whoever holds it.
struct Logits {
  std::vector<float> values;  // [rows, cols], natural units
  int64_t rows = 0;
  int64_t cols = 0;  // vocab_size

  std::span<const float> last() const {
    return std::span(values).subspan(static_cast<size_t>((rows - 1) * cols), cols);
  }
};

// Called after every chunk with the tokens done and to do; false cancels (CancelledError).
using Progress = std::function<bool(int64_t done, int64_t total)>;

// A selector of the cache chooses from what the first forward() reads, which is the prompt. kvzip
// has the model repeat it: passes over about as many tokens again, at positions behind the prompt
// (beyond n_ctx where it is full), of which nothing stays. They count as progress. If they fail or
// are cancelled, the prompt stays whole, and goes on with the next forward().
//
// Belongs to one thread at a time. If a call throws, the session is as it was before it, except
// that chunks of a long forward() that were finished stay (n_tokens() tells).
class Session {
 public:
  Session(std::shared_ptr<Model> model, const SessionOptions& options);

  // Reads tokens after those already held; returns logits [1, vocab] of the last one, or
  // [n, vocab] with all_logits. Throws ConfigError (no tokens, or one not in the vocabulary),
  // CapacityError (more than n_ctx).
  std::shared_ptr<const Logits> forward(std::span<const Token> tokens, bool all_logits = false,
                                        const Progress& progress = {});

  // Speculation: reads tokens that may follow and returns their logits [n, vocab], but does not
  // make them part of the session yet. accept() does so with the first n of ahead(), and leaves in
  // the session, bit for bit, what reading them one by one would leave; any other change, and
  // drop_ahead(), forgets them. Throws as forward() does, and ConfigError above max_ahead().
  std::shared_ptr<const Logits> look_ahead(std::span<const Token> tokens);
  std::span<const Token> ahead() const { return std::span(ahead_).subspan(accepted_); }
  // 0 when the context is full, else at most kFewRows. Of more, the last would see rows of the
  // cache's tail that are coded by the time it is read alone.
  int max_ahead() const;
  void accept(int n);
  void drop_ahead();

  // Keeps the longest common prefix of what the session holds and `tokens` (but leaves at least one
  // of `tokens` to be read), forgets the rest, and returns the length of that prefix; 0 when a
  // sliding window has dropped rows that going back would need.
  int reuse_prefix(std::span<const Token> tokens);

  const Model& model() const { return *model_; }
  const std::shared_ptr<Model>& model_ptr() const { return model_; }
  const SessionOptions& options() const { return options_; }
  std::span<const Token> tokens() const { return tokens_; }
  int n_tokens() const { return static_cast<int>(tokens_.size()); }
  int n_ctx() const { return options_.n_ctx; }
  // Logits [1, vocab] of the last token held; null right after construction or truncate().
  std::shared_ptr<const Logits> last_logits() const { return last_row_; }

  void truncate(int n_tokens);
  Session fork() const;
  const KvCache& cache() const { return cache_; }
  CacheStats cache_stats() const;
  // Writes everything needed to go on bit-identically; atomic. Throws IoError.
  void save(const std::filesystem::path& path) const;

 private:
  friend class Model;
  friend std::vector<std::shared_ptr<const Logits>> forward_batch(std::span<const BatchInput>,
                                                                  const Progress&);
  friend class BatchGeneration;
  struct Reading;  // forward_batch.cpp
  static void run(Model& model, const Batch& batch);
  void check(std::span<const Token> tokens) const;
  void reserve_tokens(size_t n);
  void read_chunks(std::span<const Token> tokens, Mat logits, bool all_logits,
                   const Progress& progress);
  // Tokens of the next pass of a prompt of which `left` are not read.
  int64_t next_pass(int64_t left) const;
  // For a cache that asks for it, once `n` more tokens are read: how to repeat the prompt.
  std::optional<PromptRepeat> repeat_after(size_t n) const;
  // Has the model repeat the prompt, and ends it. did(n): n tokens were read; may throw.
  void repeat_prompt(const PromptRepeat& repeat, const std::function<void(int64_t)>& did);
  std::shared_ptr<Logits> logits_buffer(int64_t rows);
  void keep_last_row(const std::shared_ptr<Logits>& logits);
  void restore(SessionState&& state);  // into a new session

  std::shared_ptr<Model> model_;
  SessionOptions options_;
  KvCache cache_;
  double sealed_share_;  // as in pass_tokens()
  std::vector<Token> tokens_;
  std::shared_ptr<Logits> last_row_;   // of last_logits()
  std::shared_ptr<Logits> spare_row_;  // the one before, reused when nobody else holds it
  std::vector<Token> ahead_;           // of which the first accepted_ are part of the session
  size_t accepted_ = 0;
  std::shared_ptr<Logits> ahead_logits_;  // [ahead_.size(), vocab]
};

}  // namespace kve
