// What a saved cache holds of a layer's blocks; for kv_cache_io.cpp, which says how it is laid out.
#pragma once

#include <string>

#include "cache/blocks/block_memory.h"
#include "cache/state_bytes.h"

namespace kve {

class BlockMemoryIo {
 public:
  // Throws IoError where blocks lie in a file that cannot be read.
  static void save(const BlockMemory& memory, int n_tokens, StateWriter* out);
  // Of a cache of n_tokens, whose sides begin at first_pos. `memory` is fresh. Throws FormatError,
  // CapacityError and IoError.
  static void load(int n_tokens, int first_pos, const std::string& where, StateReader* in,
                   BlockMemory* memory);

 private:
  static void load_block(const std::string& where, StateReader* in, BlockMemory* memory);
};

}  // namespace kve
