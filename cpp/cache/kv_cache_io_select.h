// What a saved cache holds of its selector; for kv_cache_io.cpp, which says how it is laid out.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "cache/kv_cache_state.h"
#include "cache/state_bytes.h"

namespace kve {

// As in KvCache::State.
struct SelectionCounts {
  int n_tokens = 0;
  int prompt_tokens = 0;
  int selected_at = 0;
  int dropped_at = 0;
  int shift = 0;
};

// Tells apart selectors whose budgets a file made (duo): equal budgets of all heads, equal sums.
uint64_t budgets_checksum(const Selector& selector, std::span<const LayerShape> shapes);

void save_counts(const SelectionCounts& counts, StateWriter* out);
// Throws FormatError, as all that follows.
SelectionCounts load_counts(int n_tokens, const SelectorSpec& spec, StateReader* in);

void save_kept(const LayerCache& layer, StateWriter* out);
// `layer` is fresh. Rows, masses and voters are such that no later pass reads what is not there.
void load_kept(const LayerShape& shape, const SelectorSpec& spec, const SelectionCounts& counts,
               const std::string& where, StateReader* in, LayerCache* layer);

}  // namespace kve
