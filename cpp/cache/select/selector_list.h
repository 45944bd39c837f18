// What the sources about stages of selectors share (selector_stage.h): the list and the ranges.
#pragma once

#include <string>
#include <string_view>

#include "cache/select/selector_stage.h"

namespace kve {

inline constexpr int kMaxSelectorTokens = 1'000'000;

// Parameters that are whole numbers, and those that are real.
struct WholeField {
  std::string_view key;
  int SelectorSpec::* member;
  int low;
  int high;
};
inline constexpr WholeField kWholeFields[] = {
    {"sinks", &SelectorSpec::sinks, 0, kMaxSelectorTokens},
    {"recent", &SelectorSpec::recent, 0, kMaxSelectorTokens},
    {"interval", &SelectorSpec::interval, 0, kMaxSelectorTokens},
    {"window", &SelectorSpec::window, 1, 1024},
    {"kernel", &SelectorSpec::kernel, 1, 255},
    {"future", &SelectorSpec::future, 1, 65536},
    {"page", &SelectorSpec::page, 16, 64},
    {"dense", &SelectorSpec::dense, 0, 1024},
    {"init", &SelectorSpec::init, 0, kMaxSelectorTokens},
    {"local", &SelectorSpec::local, 1, kMaxSelectorTokens},
    {"block", &SelectorSpec::block, 64, 4096},
    {"topk", &SelectorSpec::topk, 0, 65536},
    {"repr", &SelectorSpec::representatives, 1, 4096},
    {"span", &SelectorSpec::span, 1, 4096},
    {"resident", &SelectorSpec::resident, 0, 65536},
    {"chunk", &SelectorSpec::chunk, 1, 65536},
    {"plus", &SelectorSpec::plus, 0, 1},
};

struct RealField {
  std::string_view key;
  double SelectorSpec::* member;
  double low;
  double high;
};
inline constexpr RealField kRealFields[] = {
    {"beta", &SelectorSpec::beta, 1, 1000},
    {"alpha", &SelectorSpec::alpha, 0, 1},
    {"epsilon", &SelectorSpec::epsilon, 0, 1000},
    {"streaming", &SelectorSpec::streaming, 0, 1},
};

// Which scores adakv may use: those of selectors that judge every row of every head.
bool can_compete(SelectorSpec::Kind kind);
std::string known_scores();
// The entry of the selector that gives scores, whether or not heads compete.
const SelectorEntry& scorer_of(SelectorSpec::Kind kind);
// The defaults of adakv with the scores of another selector.
SelectorSpec scored_by(const SelectorEntry& scorer);
// What infllm makes of a number of tokens, as the authors' benchmark divides them.
void set_total(int tokens, SelectorSpec* spec);
// The defaults of a selector's parameters.
SelectorSpec usual_of(const SelectorSpec& spec);

}  // namespace kve
