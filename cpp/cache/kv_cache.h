// The keys and values of one sequence, for every layer.
//
// A forward pass appends rows layer by layer, attends to view(), and commits once at its end; until
// then nothing that was there before has changed, so a failed pass is undone by rollback(). Rows
// may also stay appended after the pass, to be committed one by one as speculated tokens are
// accepted. Pages are immutable once full and shared between forks; the tail belongs to one cache.
//
// A cache belongs to one thread at a time; forks may live in different threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "cache/select/selector.h"
#include "cache/side_cache.h"
#include "cache/spec.h"
#include "cache/stats.h"
#include "kernels/backend.h"

namespace kve {

// What groups of neighbouring kv heads have in common: for each group the basis of their joined
// keys (before the rotary embedding) and of their joined values.
struct LatentBases {
  int group = 1;  // heads
  std::vector<BasisData> keys;
  std::vector<BasisData> values;
};

// What one layer stores per token.
struct LayerShape {
  int n_kv_heads = 0;
  int key_dim = 0;
  int value_dim = 0;
  int window = 0;  // 0: attends to everything; else only to the last `window` positions
  std::shared_ptr<const Rotation> rotation = nullptr;  // of keys with rotary embeddings
  // Sides without a projector of their own keep rows as coefficients of these. Null: none.
  std::shared_ptr<const LatentBases> latents = nullptr;
};

// How much rows of values of a query head add to the residual stream: the norms [n] of what the
// layer's output weights make of them [n, value_dim]. Called by one thread.
using ValueNorms =
    std::function<void(int layer, int query_head, ConstMat values, std::span<float> norms)>;

class KvCache {
 public:
  // Throws ConfigError when the spec does not fit the shapes (e.g. group does not divide head_dim),
  // and what reading a file does that the spec names.
  KvCache(const CacheSpec& spec, std::vector<LayerShape> layers, RowScorer scorer = {},
          MemorySource& memory = host_memory());
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  const CacheSpec& spec() const;
  std::span<const LayerShape> layers() const;
  int n_tokens() const;  // committed
  // Of the next token, appended ones not counted: n_tokens(), unless a selector reassigns
  // positions.
  int next_position() const;

  // Adds the rows of n new tokens at positions n_tokens() ... to one layer. k [n, n_kv_heads *
  // key_dim] (rotated), v [n, n_kv_heads * value_dim]. Throws Error naming layer, head, side and
  // token when a value is not finite, and CapacityError; this layer is then as before the call, and
  // the caller rolls back the others.
  void append(Backend& backend, int layer, ConstMat k, ConstMat v);
  // The queries [n, n_heads * key_dim] of the tokens last appended to a layer, for projectors that
  // ask for them. Throws CapacityError.
  bool wants_queries(int layer) const;
  void observe_queries(int layer, ConstMat q);
  // The same for selectors, around attend(): memory for AttendTask::log_sums of the tokens last
  // appended, then what was attended to. Null where nothing is asked for. Throws CapacityError.
  float* log_sums(int layer, int64_t n, int n_heads);
  void observe_attention(Backend& backend, int layer, const AttendParams& params,
                         const AttendTask& task);
  // [key_dim]: of the committed tokens whose queries are known, while wants_queries(); else ones.
  std::vector<double> mean_squared_queries(int layer, int kv_head) const;
  // Adds what the queries [n, n_heads * key_dim] of the tokens last appended to a layer attend to:
  // one task, or where a selector shows each query some tokens only (quest) one for each. `out` [n,
  // n_heads * value_dim]; tasks are valid until the next change or call. Throws CapacityError.
  void plan_attention(Backend& backend, const AttendParams& params, int layer, ConstMat q, Mat out,
                      std::vector<AttendTask>* tasks);
  // Whether the tokens last appended attend at once, by attend() instead of the three above: where
  // a layer keeps what left its local window as blocks (infllm, cache/blocks/), at most
  // spec().selector.span of them; and where each query head has rows of its own (h2o_bench), once
  // it has. Throws CapacityError, and IoError where blocks lie in a file.
  bool attends_apart(int layer) const;
  void attend(Backend& backend, const AttendParams& params, int layer, ConstMat q, Mat out);
  // Committed and appended rows of one layer, one view per kv head; valid until the next change.
  std::span<const HeadView> view(int layer) const;
  // Makes the first n of the appended tokens (the same number in every layer) part of the cache and
  // seals what exceeds the tail; the others stay appended (none may where layers have blocks).
  // Layers with a window then drop pages that lie two windows back. Throws as append does; the
  // cache is then as before the pass. With prompt_goes_on, further tokens of the same prompt
  // follow: a cache with exact prefill waits. At the end of a prompt its last segment (mpo,
  // lowrank) is closed, however short, but for less than a page. What comes in one pass without
  // more to follow is a prompt if it is a page at least.
  void commit(Backend& backend, int n, bool prompt_goes_on = false);
  // The same in two steps, so that several caches are committed all or none: what can fail, then
  // what cannot. rollback() undoes the first.
  void prepare_commit(Backend& backend, int n, bool prompt_goes_on = false);
  void finish_commit(int n) noexcept;
  // So many more tokens of a prompt follow, 0: no more are known of. What waits for the end of a
  // prompt then does not move while it grows.
  void expect(int n) noexcept;
  // Forgets the appended tokens that were not committed.
  void rollback();
  // Selectors that judge a prompt by what it takes to repeat it (kvzip), kv_cache_repeat.cpp.
  // Whether a first prompt that ends with n_tokens tokens is to be read with prompt_goes_on,
  // repeated in parts, and ended by end_prompt(); one that is not keeps every row.
  bool wants_repeat(int n_tokens) const;
  // Tokens that are appended from now on repeat those at positions [first, end), which are
  // committed: of the weights of a softmax over these, the sinks and what was appended, the largest
  // that any query gives a row is kept. They are not to be committed but rolled back, before the
  // next part as well. Throws CapacityError.
  void begin_repeat(int first, int end);
  // Whether weights are taken per unit of what goes into a layer's products (kvzip with plus=1): of
  // the tokens last appended, rows x [n, d_model], before observe_attention().
  bool wants_inputs(int layer) const;
  void observe_inputs(int layer, ConstMat x);
  // Drops what was not needed, and seals; with plus=1 `norms` is needed. Throws CapacityError;
  // repeats are then to be cancelled, and the prompt goes on.
  void end_prompt(Backend& backend, const ValueNorms& norms = {});
  void cancel_repeat() noexcept;
  // Tokens until rows of a tail are sealed, when the last of them is committed: 1 or more. Until
  // then it does not matter to what a token sees whether tokens are read together or one by one.
  int tokens_until_seal() const;

  // Forgets the tokens from position n on, and appended rows that were not committed. Throws
  // ConfigError when n is negative or more than n_tokens(), and CapacityError when a layer with a
  // window has dropped rows that the token at position n would attend to, or tokens have left the
  // local window of a layer with blocks (never for n = 0). Rows that were coded stay coded: a later
  // tail starts anew at n.
  void truncate(int n);
  bool can_truncate(int n) const;
  // A copy that shares pages; without rows that are appended and not committed.
  KvCache fork() const;
  // Without `path`.
  CacheStats stats() const;
  // How few queries attend to pages on this backend: the worst of all.
  ReadPath read_path(const Backend& backend, Precision precision) const;
  // The allocator behind this cache and its forks: pages, tails, bases, tables and views. Not
  // counted are the State object itself, the shapes, and what fitting a basis takes for a moment.
  const MemoryCounter& memory() const;
  // From now on this cache and its forks together hold at most so many bytes. Where older= says how
  // (cache/spec.h), append() and commit() code the oldest pages in fewer bits, which stay so even
  // if the pass fails. What would take more all the same throws CapacityError, and the cache is as
  // before.
  void limit_memory(int64_t bytes);

  // Rows that a kv head stores, committed or appended: of all tokens, but for those that a window
  // or a selector has dropped, and those that are in blocks.
  int rows(int layer, int head) const;
  int rows(int layer) const;  // of head 0: that of all unless a selector drops rows by head
  // Positions of these rows, rising; `out` has rows(layer, head) places.
  void read_positions(int layer, int head, std::span<int32_t> out) const;
  // Those that the next token sees where each query head has rows of its own (h2o_bench); all rows
  // of the layer before it has.
  std::vector<int32_t> seen_positions(int layer, int query_head) const;
  // Keys or values as attention sees them, [rows(layer, head), dim], decoded to f32. out has that
  // shape.
  void read_keys(int layer, int head, Mat out) const;
  void read_values(int layer, int head, Mat out) const;

  // The whole state as bytes (no checksum, no header: engine/session_file adds them), and back:
  // `load` throws FormatError unless the bytes describe exactly a cache of this spec and shape, and
  // has then changed nothing. Nothing may be appended and not yet committed.
  std::vector<std::byte> save() const;
  void load(std::span<const std::byte> bytes);

 private:
  struct State;
  explicit KvCache(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace kve
