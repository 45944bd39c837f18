// How many tokens of a prompt a forward pass reads, where pages are sealed between passes.
//
// Rows of a pass wait for its end in binary16, so that a long pass raises the peak of the cache's
// memory; but only if it is one of the last: those before it have the room that sealed rows of the
// rest of the prompt are going to need anyway.
#pragma once

#include <cstdint>
#include <span>

#include "cache/kv_cache.h"

namespace kve {

// The share that sealed rows have of what they take in binary16, at least; 0 where that is not
// known, or where not all rows stay.
double sealed_share(const CacheSpec& cache, std::span<const LayerShape> layers);

// Tokens of the next pass, of `left`: as many as n_batch, or up to twice as many where the peak of
// memory is no higher for it, since sealed rows have such a share. 0: never more.
int64_t pass_tokens(int64_t n_batch, double share, int64_t left);

}  // namespace kve
