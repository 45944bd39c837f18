// The keys and values of one sequence, for every layer.
//
// A forward pass appends rows layer by layer, attends to view(), and commits once at its end; until
// then nothing that was there before has changed, so a failed pass is undone by rollback(). Pages
// are immutable once full and shared between forks; the tail belongs to one cache.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "cache/page.h"
#include "cache/spec.h"
#include "cache/stats.h"
#include "kernels/backend.h"

namespace kve {

// What one layer stores per token.
struct LayerShape {
  int n_kv_heads = 0;
  int key_dim = 0;
  int value_dim = 0;
  int window = 0;  // 0: attends to everything; else only to the last `window` positions

  bool operator==(const LayerShape&) const = default;
};

class KvCache {
 public:
  // Throws ConfigError when the spec does not fit the shapes (e.g. group does not divide head_dim).
  KvCache(const CacheSpec& spec, std::vector<LayerShape> layers);
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  const CacheSpec& spec() const;
  std::span<const LayerShape> layers() const;
  int n_tokens() const;  // committed

  // Adds the rows of n new tokens at positions n_tokens() ... to one layer. k [n, n_kv_heads *
  // key_dim] (rotated), v [n, n_kv_heads * value_dim]. Throws Error naming layer, head and token
  // when a value that has to be coded is not finite; the caller then rolls back.
  void append(Backend& backend, int layer, ConstMat k, ConstMat v);
  // Committed and appended rows of one layer, one view per kv head; valid until the next change.
  std::span<const HeadView> view(int layer) const;
  // Makes the appended tokens (the same number in every layer) part of the cache and seals what
  // exceeds the tail. Throws as append does; the cache is then as before the pass.
  void commit(Backend& backend, int n_new);
  void rollback();

  // Forgets the tokens from position n on. Throws ConfigError when n is negative or more than
  // n_tokens(). Rows that were coded stay coded: a later tail starts anew at n.
  void truncate(int n);
  // A copy that shares full pages.
  KvCache fork() const;
  CacheStats stats() const;
  // The allocator behind all pages of this cache and its forks.
  const MemoryCounter& memory() const;

  // Keys or values as attention sees them, [n_tokens(), dim], decoded to f32. out has that shape.
  void read_keys(int layer, int head, Mat out) const;
  void read_values(int layer, int head, Mat out) const;

  // The whole state as bytes (no checksum, no header: engine/session_file adds them), and back:
  // `load` throws FormatError unless the bytes describe exactly a cache of this spec and shape.
  std::vector<std::byte> save() const;
  void load(std::span<const std::byte> bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kve
