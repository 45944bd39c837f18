#include "cache/select/selector_stage.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/printable.h"

namespace kve {
namespace {

using Kind = SelectorSpec::Kind;

constexpr int kMaxTokens = 1'000'000;
constexpr size_t kMaxGatesPath = 4096;
// Parameters that every selector with a budget has.
#define KVE_BUDGET "keep, sinks, recent, interval, prompt"

SelectorSpec quarter(Kind kind) {
  SelectorSpec spec;
  spec.kind = kind;
  spec.share = 0.25;
  return spec;
}

// With a budget that holds for ever.
SelectorSpec steady(Kind kind, int recent) {
  SelectorSpec spec = quarter(kind);
  spec.recent = recent;
  spec.interval = 1;
  return spec;
}

SelectorSpec voted(Kind kind) {
  SelectorSpec spec = quarter(kind);
  spec.window = 64;
  spec.kernel = 5;
  if (kind == Kind::pyramidkv) spec.beta = 20;
  return spec;
}

SelectorSpec streaming() {
  SelectorSpec spec = steady(Kind::streaming, 0);
  spec.sinks = 4;
  return spec;
}

SelectorSpec realdrop() {
  SelectorSpec spec = steady(Kind::h2o_realdrop, 512);
  spec.share = 1;
  spec.tokens = 4 + 512;
  return spec;
}

SelectorSpec expected() {
  SelectorSpec spec = quarter(Kind::expected);
  spec.sinks = 4;
  spec.future = 512;
  return spec;
}

SelectorSpec adaptive() {
  SelectorSpec spec = voted(Kind::snapkv);
  spec.joint = true;
  spec.alpha = 0.2;
  return spec;
}

SelectorSpec randomly() {
  SelectorSpec spec = quarter(Kind::random);
  spec.seed = 1;
  return spec;
}

SelectorSpec bench() {
  SelectorSpec spec = steady(Kind::h2o_bench, 0);
  spec.share = 0.5;
  return spec;
}

SelectorSpec custom() {
  SelectorSpec spec = quarter(Kind::custom);
  spec.window = 64;
  return spec;
}

SelectorSpec duo() {
  SelectorSpec spec;
  spec.kind = Kind::duo;
  spec.sinks = 128;
  spec.recent = 256;
  spec.interval = 64;
  spec.streaming = 0.5;
  return spec;
}

const auto& entries() {
  static const std::array kEntries = {
      SelectorEntry{"full", {}, "", "every token stays", "kvengine"},
      SelectorEntry{"window", steady(Kind::window, 0), "keep, interval, prompt",
                    "the newest tokens", "2004.05150"},
      SelectorEntry{"streaming", streaming(), "keep, sinks, interval, prompt, positions",
                    "StreamingLLM: the first few and the newest tokens, at their positions or at "
                    "those in the cache",
                    "2309.17453"},
      SelectorEntry{"h2o", steady(Kind::h2o, -1), KVE_BUDGET,
                    "tokens that got most attention from all queries, and the newest (half of the "
                    "budget unless recent= says how many)",
                    "2306.14048"},
      SelectorEntry{"h2o_realdrop", realdrop(), "heavy, recent, interval, prompt",
                    "H2O with numbers of heavy and recent tokens", "2306.14048"},
      SelectorEntry{"h2o_bench", bench(), "keep",
                    "H2O as a benchmark ran it: masks tokens in decode steps, frees nothing",
                    "2306.14048"},
      SelectorEntry{"snapkv", voted(Kind::snapkv), KVE_BUDGET ", window, kernel",
                    "tokens for which the last queries of the prompt vote", "2404.14469"},
      SelectorEntry{"pyramidkv", voted(Kind::pyramidkv), KVE_BUDGET ", window, kernel, beta",
                    "SnapKV with budgets that fall from layer to layer", "2406.02069"},
      SelectorEntry{"tova", steady(Kind::tova, 1), KVE_BUDGET,
                    "tokens that the newest query attends to, the same for all heads of a layer",
                    "2401.06104"},
      SelectorEntry{"observed", quarter(Kind::observed), KVE_BUDGET,
                    "tokens that got most attention per query that saw them", "kvpress"},
      SelectorEntry{"knorm", quarter(Kind::knorm), KVE_BUDGET, "keys of the smallest norm",
                    "2406.11430"},
      SelectorEntry{"keydiff", quarter(Kind::keydiff), KVE_BUDGET,
                    "keys that differ most from the mean direction of all", "2504.15364"},
      SelectorEntry{"expected", expected(), KVE_BUDGET ", future, epsilon",
                    "ExpectedAttention: weights that future queries would give, times the norm of "
                    "the value",
                    "2510.00636"},
      SelectorEntry{"random", randomly(), KVE_BUDGET ", seed", "the control", "kvengine"},
      SelectorEntry{"custom", custom(), KVE_BUDGET ", window",
                    "scores of a function that the session is given", "kvengine"},
      SelectorEntry{"adakv", adaptive(),
                    KVE_BUDGET ", score, alpha, window, kernel, beta, future, epsilon, seed",
                    "Ada-KV: the heads of a layer compete for one budget, by the scores of another "
                    "selector",
                    "2407.11550"},
      SelectorEntry{"duo", duo(), "gates, streaming, sinks, recent, interval, prompt",
                    "DuoAttention: heads with low gates keep the first and newest tokens, the "
                    "others all",
                    "2410.10819"},
  };
  return kEntries;
}

#undef KVE_BUDGET

struct WholeField {
  std::string_view key;
  int SelectorSpec::* member;
  int low;
  int high;
};
constexpr WholeField kWholeFields[] = {
    {"sinks", &SelectorSpec::sinks, 0, kMaxTokens},
    {"recent", &SelectorSpec::recent, 0, kMaxTokens},
    {"interval", &SelectorSpec::interval, 0, kMaxTokens},
    {"window", &SelectorSpec::window, 1, 1024},
    {"kernel", &SelectorSpec::kernel, 1, 255},
    {"future", &SelectorSpec::future, 1, 65536},
};

struct RealField {
  std::string_view key;
  double SelectorSpec::* member;
  double low;
  double high;
};
constexpr RealField kRealFields[] = {
    {"beta", &SelectorSpec::beta, 1, 1000},
    {"alpha", &SelectorSpec::alpha, 0, 1},
    {"epsilon", &SelectorSpec::epsilon, 0, 1000},
    {"streaming", &SelectorSpec::streaming, 0, 1},
};

// Which scores adakv may use: those of selectors that judge every row of every head.
bool can_compete(Kind kind) {
  switch (kind) {
    case Kind::h2o:
    case Kind::snapkv:
    case Kind::pyramidkv:
    case Kind::observed:
    case Kind::knorm:
    case Kind::keydiff:
    case Kind::expected:
    case Kind::random:
      return true;
    default:
      return false;
  }
}

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
    if (value != "1" && read(value, &n) && n >= 2 && n <= kMaxTokens) {
      spec->tokens = n;
      spec->share = 1;
      return "";
    }
    if (!read(value, &share) || !(share > 0 && share <= 1)) {
      return message(
          "a share of the tokens above 0 and at most 1, or a number of tokens from 2 to ",
          kMaxTokens);
    }
    spec->tokens = 0;
    spec->share = share;
  } else if (key == "heavy") {
    int n = 0;
    if (!read(value, &n) || n > kMaxTokens) {
      return message("a whole number from 0 to ", kMaxTokens);
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
  }
  return "";
}

// The defaults of adakv with the scores of another selector.
SelectorSpec scored_by(const SelectorEntry& scorer) {
  SelectorSpec spec = scorer.spec;
  spec.joint = true;
  spec.interval = 0;
  spec.alpha = adaptive().alpha;
  return spec;
}

std::string known_scores() {
  std::string known;
  for (const SelectorEntry& entry : entries()) {
    if (entry.spec.joint || !can_compete(entry.spec.kind)) continue;
    known += message(known.empty() ? "" : ", ", entry.name);
  }
  return known;
}

const SelectorEntry& scorer_of(Kind kind) {
  return *std::ranges::find_if(entries(), [&](const SelectorEntry& entry) {
    return entry.spec.kind == kind && !entry.spec.joint;
  });
}

// The defaults of a selector's parameters.
SelectorSpec usual_of(const SelectorSpec& spec) {
  const SelectorEntry& entry = scorer_of(spec.kind);
  return spec.joint ? scored_by(entry) : entry.spec;
}

bool is_pooled(Kind kind) { return kind == Kind::snapkv || kind == Kind::pyramidkv; }

}  // namespace

std::span<const SelectorEntry> cache_selectors() { return entries(); }

const SelectorEntry* find_selector(std::string_view name) {
  const auto at = std::ranges::find(entries(), name, &SelectorEntry::name);
  return at == entries().end() ? nullptr : &*at;
}

const SelectorEntry& entry_of(const SelectorSpec& spec) {
  return spec.joint ? *find_selector("adakv") : scorer_of(spec.kind);
}

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
    const std::string expected = set_value(key, value, &spec);
    if (!expected.empty()) {
      fail(i, true, message(key, ": expected ", expected, ", found ", quoted(value)));
    }
  }
  if (spec.kind == Kind::h2o_realdrop) spec.tokens += spec.recent;
  return spec;
}

std::string selector_error(const SelectorSpec& spec) {
  if (spec.reassign && spec.kind != Kind::streaming) return "only streaming reassigns positions";
  if (spec.joint && !can_compete(spec.kind)) return "such a selector has no scores that compete";
  const SelectorSpec usual = usual_of(spec);
  for (const WholeField& field : kWholeFields) {
    const int value = spec.*field.member;
    const int low = usual.*field.member == 0 ? 0 : field.low;
    const bool half = field.key == "recent" && spec.kind == Kind::h2o && value == -1;
    if ((value < low || value > field.high) && !half) {
      return message(field.key, ": expected ", low, " to ", field.high, ", found ", value);
    }
  }
  for (const RealField& field : kRealFields) {
    const double value = spec.*field.member;
    if (value != usual.*field.member && !(value >= field.low && value <= field.high)) {
      return message(field.key, ": expected ", field.low, " to ", field.high, ", found ", value);
    }
  }
  if (!(spec.share > 0 && spec.share <= 1)) {
    return message("keep: expected a share above 0 and at most 1, found ", spec.share);
  }
  if (spec.tokens < 0 || spec.tokens > 2 * kMaxTokens) {
    return message("keep: expected 0 to ", 2 * kMaxTokens, " tokens, found ", spec.tokens);
  }
  if (is_pooled(spec.kind) && spec.kernel % 2 == 0) {
    return message("kernel: expected an odd number, found ", spec.kernel);
  }
  if (spec.kind == Kind::h2o_realdrop && spec.tokens < 1) {
    return "heavy: expected at least one heavy or recent token that stays, found none";
  }
  const int newest = std::max({spec.recent, is_pooled(spec.kind) ? spec.window : 0, 0});
  if (spec.tokens > 0 && spec.tokens < spec.sinks + newest) {
    return message("keep: expected at least the ", spec.sinks, " sinks and ", newest,
                   " recent tokens that always stay, found ", spec.tokens);
  }
  if (spec.kind == Kind::h2o_bench && spec.tokens > 0) {
    return message("keep: h2o_bench expects a share of the tokens, found ", spec.tokens);
  }
  if (spec.kind == Kind::duo && spec.gates.empty()) {
    return "duo needs gates=FILE: a line per layer of numbers from 0 to 1, one per kv head";
  }
  if (spec.kind == Kind::duo && spec.sinks + spec.recent == 0) {
    return "duo needs sinks or recent tokens that streaming heads keep, found none";
  }
  if (spec.gates.size() > kMaxGatesPath) {
    return message("gates: expected a path of at most ", kMaxGatesPath, " bytes, found ",
                   spec.gates.size());
  }
  return "";
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
    add("keep", spec.tokens > 0 ? std::to_string(spec.tokens) : real_text(spec.share));
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
    if (key == "prompt") out += " (exact, chunked)";
    if (key == "positions") out += " (original, reassigned)";
  };
  each_parameter(entry.spec, entry.spec, keys_of(entry.spec), true, add);
  if (entry.spec.joint) add("alpha", real_text(entry.spec.alpha));
  return out;
}

}  // namespace kve
