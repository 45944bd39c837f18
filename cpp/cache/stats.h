// What a cache costs, in bytes that were really allocated.
#pragma once

#include <cstdint>
#include <string>

namespace kve {

struct CacheStats {
  std::string spec;           // canonical
  int64_t bytes = 0;          // all of it: codes + scales + bases + tail + meta
  int64_t codes = 0;          // coded values in pages
  int64_t scales = 0;         // their scales and offsets
  int64_t bases = 0;          // projections shared by pages
  int64_t tail = 0;           // uncompressed recent rows
  int64_t meta = 0;           // page tables and descriptors
  int64_t offloaded = 0;      // of blocks that lie in a file (infllm); not part of bytes
  int64_t on_device = 0;      // of codes and scales, what lies in a device's memory
  int64_t spilled = 0;        // and what a limit of that memory keeps in the host's
  int64_t f16_bytes = 0;      // the same tokens, uncompressed in f16
  int64_t peak_bytes = 0;     // most bytes this cache and its forks ever held together
  int64_t tokens_seen = 0;    // position counter
  int64_t tokens_kept = 0;    // rows still stored, the most over layers and heads
  double bits_per_value = 0;  // 16 * bytes / f16_bytes; 0 for an empty cache
  // How attention of few queries reads the pages: "fused" (as they lie in memory), "rebuilt" (rows
  // are decoded to f32 first) or "host" (by the CPU, for a device that does not know them). Known
  // to a session only.
  std::string path;
};

}  // namespace kve
