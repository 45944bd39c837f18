// Sessions on disk: a header with version, model fingerprint and checksum, then the state.
//
//   "KVESESS\0"  u32 version  u32 reserved  u64 model fingerprint  u64 payload bytes  u64 checksum
//   payload: options, tokens, last logits, cache; little-endian throughout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/token.h"
#include "engine/session.h"

namespace kve {

struct SessionState {
  SessionOptions options;
  std::vector<Token> tokens;
  std::vector<float> last_logits;  // empty, or [vocab_size]
  std::vector<std::byte> cache;    // as KvCache::save()
};

// Replaces `path` atomically. Throws IoError.
void write_session_file(const std::filesystem::path& path, uint64_t fingerprint,
                        const SessionState& state);
// Throws IoError, FormatError (not a session, damaged, cut short), ConfigError (of another model),
// UnsupportedError (newer version). Memory is bounded by the size of the file.
SessionState read_session_file(const std::filesystem::path& path, uint64_t fingerprint);

}  // namespace kve
