// One function per file of this folder, for make_selector().
#pragma once

#include <memory>

#include "cache/select/selector.h"

namespace kve {

std::unique_ptr<Selector> make_window(const SelectorSpec& spec);  // window, streaming
std::unique_ptr<Selector> make_h2o(const SelectorSpec& spec);     // h2o, h2o_realdrop
std::unique_ptr<Selector> make_snapkv(const SelectorSpec& spec);
std::unique_ptr<Selector> make_pyramidkv(const SelectorSpec& spec);
std::unique_ptr<Selector> make_tova(const SelectorSpec& spec);
std::unique_ptr<Selector> make_observed(const SelectorSpec& spec);
std::unique_ptr<Selector> make_knorm(const SelectorSpec& spec);
std::unique_ptr<Selector> make_keydiff(const SelectorSpec& spec);
std::unique_ptr<Selector> make_expected(const SelectorSpec& spec);
std::unique_ptr<Selector> make_random(const SelectorSpec& spec);
std::unique_ptr<Selector> make_h2o_bench(const SelectorSpec& spec);
std::unique_ptr<Selector> make_custom(const SelectorSpec& spec, RowScorer scorer);
std::unique_ptr<Selector> make_kvzip(const SelectorSpec& spec);
std::unique_ptr<Selector> make_duo(const SelectorSpec& spec, int n_layers, int n_kv_heads);

}  // namespace kve
