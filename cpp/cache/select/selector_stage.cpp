// Stages of selectors as they are written.
#include "cache/select/selector_stage.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/printable.h"
#include "cache/select/selector_list.h"

namespace kve {
namespace {

using Kind = SelectorSpec::Kind;

bool has_key(std::string_view keys, std::string_view key) {
  while (!keys.empty()) {
    const size_t comma = keys.find(", ");
    if (keys.substr(0, comma) == key) return true;
    if (comma == std::string_view::npos) break;
    keys.remove_prefix(comma + 2);
  }
  return false;
}

std::string real_text(double value) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof(text), value);
  KVE_ASSERT(error == std::errc{});
  return {text, end};
}

template <class Value>
bool read(std::string_view text, Value* value) {
  // from_chars would take a sign, "inf" and "nan".
  if (text.empty() || !(text[0] >= '0' && text[0] <= '9')) return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc{} && end == text.data() + text.size();
}

// Sets a parameter; what was expected when the value is none of it, else empty.
std::string set_value(std::string_view key, std::string_view value, SelectorSpec* spec) {
  for (const WholeField& field : kWholeFields) {
    if (field.key != key) continue;
    int n = 0;
    if (!read(value, &n) || n < field.low || n > field.high) {
      return message("a whole number from ", field.low, " to ", field.high);
    }
    spec->*field.member = n;
    return "";
  }
  for (const RealField& field : kRealFields) {
    if (field.key != key) continue;
    double x = 0;
    if (!read(value, &x) || !(x >= field.low && x <= field.high)) {
      return message("a number from ", real_text(field.low), " to ", real_text(field.high));
    }
    spec->*field.member = x;
    return "";
  }
  if (key == "keep") {
    // 1 is a share: all.
    int n = 0;
    double share = 0;
    if (value != "1" && read(value, &n) && n >= 2 && n <= kMaxSelectorTokens) {
      spec->tokens = n;
      spec->share = 1;
      return "";
    }
    if (!read(value, &share) || !(share > 0 && share <= 1)) {
      return message(
          "a share of the tokens above 0 and at most 1, or a number of tokens from 2 to ",
          kMaxSelectorTokens);
    }
    spec->tokens = 0;
    spec->share = share;
  } else if (key == "budget") {
    int n = 0;
    if (!read(value, &n) || n < 1 || n > kMaxSelectorTokens) {
      return message("a whole number from 1 to ", kMaxSelectorTokens);
    }
    spec->tokens = n;
    spec->share = 1;
  } else if (key == "heavy") {
    int n = 0;
    if (!read(value, &n) || n > kMaxSelectorTokens) {
      return message("a whole number from 0 to ", kMaxSelectorTokens);
    }
    spec->tokens = n;  // without the recent ones, until all parameters are read
  } else if (key == "prompt") {
    if (value != "exact" && value != "chunked") return "exact or chunked";
    spec->chunked = value == "chunked";
  } else if (key == "positions") {
    if (value != "original" && value != "reassigned") return "original or reassigned";
    spec->reassign = value == "reassigned";
  } else if (key == "seed") {
    if (!read(value, &spec->seed) || spec->seed > INT32_MAX) {
      return message("a whole number from 0 to ", INT32_MAX);
    }
  } else if (key == "gates") {
    spec->gates = value;
  } else if (key == "offload") {
    const bool folder = value.find('/') != std::string_view::npos;
    if (value != "memory" && value != "file" && !folder) {
      return "memory, file, or the folder of the file, with a slash";
    }
    spec->offload = value == "memory" ? std::string_view() : value;
  } else if (key == "total") {
    int n = 0;
    if (!read(value, &n) || n < 1 || n > kMaxSelectorTokens) {
      return message("a whole number from 1 to ", kMaxSelectorTokens);
    }
    set_total(n, spec);
  }
  return "";
}

}  // namespace

SelectorSpec parse_selector(const SelectorEntry& entry, std::span<const SelectorParameter> given,
                            const SelectorProblem& fail) {
  SelectorSpec spec = entry.spec;
  std::string_view keys = entry.keys;
  for (size_t i = 0; i < given.size(); ++i) {
    if (given[i].key != "score" || !entry.spec.joint) continue;
    const SelectorEntry* scorer = find_selector(given[i].value);
    if (scorer == nullptr || scorer->spec.joint || !can_compete(scorer->spec.kind)) {
      fail(i, true,
           message("score: expected one of ", known_scores(), ", found ", quoted(given[i].value)));
    }
    spec = scored_by(*scorer);
  }
  // What is said besides `total` holds.
  const auto total = std::ranges::find(given, "total", &SelectorParameter::key);
  if (has_key(keys, "total") && total != given.end()) {
    set_value(total->key, total->value, &spec);
  }
  if (spec.kind == Kind::h2o_realdrop) spec.tokens -= spec.recent;
  for (size_t i = 0; i < given.size(); ++i) {
    const auto& [key, value] = given[i];
    // What its scores do not have, adakv does not have either.
    const bool known = has_key(keys, key) && (!spec.joint || key == "score" || key == "alpha" ||
                                              has_key(scorer_of(spec.kind).keys, key));
    if (!known) {
      fail(i, false,
           message(entry.name, " has no parameter ", quoted(key), "; ",
                   keys.empty() ? "it has none" : message("known: ", keys)));
    }
    const bool budget = key == "keep" || key == "budget";
    if (budget && std::ranges::any_of(given.first(i), [&](const SelectorParameter& earlier) {
          return earlier.key != key && (earlier.key == "keep" || earlier.key == "budget");
        })) {
      fail(i, false, "expected one of budget and keep, found both");
    }
    SelectorSpec others = spec;  // total was read before
    const std::string expected = set_value(key, value, key == "total" ? &others : &spec);
    if (!expected.empty()) {
      fail(i, true, message(key, ": expected ", expected, ", found ", quoted(value)));
    }
  }
  if (spec.kind == Kind::h2o_realdrop) spec.tokens += spec.recent;
  return spec;
}

namespace {

// Every parameter of a selector with its value, in the order of its keys; `all`: also of what is as
// `usual`.
template <class Add>
void each_parameter(const SelectorSpec& spec, const SelectorSpec& usual, std::string_view keys,
                    bool all, const Add& add) {
  if (has_key(keys, "gates")) add("gates", spec.gates.empty() ? "FILE" : spec.gates);
  if (spec.joint) add("score", std::string(scorer_of(spec.kind).name));
  if (has_key(keys, "keep")) {
    const bool budget = spec.tokens > 0 && has_key(keys, "budget");
    add(budget ? "budget" : "keep",
        spec.tokens > 0 ? std::to_string(spec.tokens) : real_text(spec.share));
  }
  if (has_key(keys, "heavy")) add("heavy", std::to_string(spec.tokens - spec.recent));
  for (const WholeField& field : kWholeFields) {
    const int value = spec.*field.member;
    if (!has_key(keys, field.key) || (!all && value == usual.*field.member)) continue;
    add(field.key, value == -1 ? "half" : std::to_string(value));
  }
  for (const RealField& field : kRealFields) {
    const double value = spec.*field.member;
    if (!has_key(keys, field.key) || (!all && value == usual.*field.member)) continue;
    add(field.key, real_text(value));
  }
  if (has_key(keys, "seed") && (all || spec.seed != usual.seed)) {
    add("seed", std::to_string(spec.seed));
  }
  if (has_key(keys, "prompt") && (all || spec.chunked)) {
    add("prompt", spec.chunked ? "chunked" : "exact");
  }
  if (has_key(keys, "offload") && (all || !spec.offload.empty())) {
    add("offload", spec.offload.empty() ? "memory" : spec.offload);
  }
  if (has_key(keys, "total") && all) add("total", "TOKENS");
  if (has_key(keys, "positions") && (all || spec.reassign)) {
    add("positions", spec.reassign ? "reassigned" : "original");
  }
}

// The parameters that matter: adakv has those of its scores.
std::string_view keys_of(const SelectorSpec& spec) { return scorer_of(spec.kind).keys; }

}  // namespace

std::string selector_text(const SelectorSpec& spec) {
  const SelectorEntry& entry = entry_of(spec);
  std::string out(entry.name);
  char sign = ':';
  const auto add = [&](std::string_view key, const std::string& value) {
    out += message(sign, key, '=', value);
    sign = ',';
  };
  const SelectorSpec usual = usual_of(spec);
  each_parameter(spec, usual, keys_of(spec), false, add);
  if (spec.joint && spec.alpha != usual.alpha) add("alpha", real_text(spec.alpha));
  return out;
}

std::string selector_parameters(const SelectorEntry& entry) {
  std::string out;
  const auto add = [&](std::string_view key, const std::string& value) {
    out += message(out.empty() ? "" : ", ", key, '=', value);
    if (key == "score") out += message(" (", known_scores(), ")");
    if (key == "keep") out += " (a share above 0 to 1, or tokens)";
    if (key == "budget") out += " (tokens, or keep= with a share of them)";
    if (key == "page") out += " (16, 32, 64)";
    if (key == "prompt") out += " (exact, chunked)";
    if (key == "positions") out += " (original, reassigned)";
    if (key == "offload") out += " (memory, file, or a folder for the file)";
    if (key == "total") out += " (gives init, local, topk and resident)";
  };
  each_parameter(entry.spec, entry.spec, keys_of(entry.spec), true, add);
  if (entry.spec.joint) add("alpha", real_text(entry.spec.alpha));
  return out;
}

}  // namespace kve
