// Selectors as stages of a cache spec: their names, defaults and parameters.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "cache/select/selector_spec.h"

namespace kve {

// A selector as a spec names it.
struct SelectorEntry {
  std::string_view name;
  SelectorSpec spec;             // defaults
  std::string_view keys;         // parameters that it has: "keep, sinks"
  std::string_view description;  // one line
  std::string_view paper;        // arXiv id, or where the method comes from
};
std::span<const SelectorEntry> cache_selectors();
const SelectorEntry* find_selector(std::string_view name);  // null when unknown
const SelectorEntry& entry_of(const SelectorSpec& spec);

// A parameter as it is written.
struct SelectorParameter {
  std::string_view key;
  std::string_view value;
};
// Must throw: what is wrong with parameter `index`, or with its value.
using SelectorProblem = std::function<void(size_t index, bool of_value, const std::string& what)>;

SelectorSpec parse_selector(const SelectorEntry& entry, std::span<const SelectorParameter> given,
                            const SelectorProblem& fail);
// What is out of its range or does not go together, as a part of a sentence; empty for all that
// parse_selector() returns.
std::string selector_error(const SelectorSpec& spec);
// The same of what was asked for and exceeds a session of n_ctx tokens; defaults may.
std::string selector_room_error(const SelectorSpec& spec, int n_ctx);
// "snapkv:keep=0.25": the share or number, and what is not as by default.
std::string selector_text(const SelectorSpec& spec);
// "keep=0.25, window=64, ...": every parameter with its default.
std::string selector_parameters(const SelectorEntry& entry);

}  // namespace kve
