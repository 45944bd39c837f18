// The selectors that there are, and their defaults.
#include "cache/select/selector_list.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace kve {
namespace {

using Kind = SelectorSpec::Kind;

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

SelectorSpec quest() {
  SelectorSpec spec;
  spec.kind = Kind::quest;
  spec.tokens = 1024;
  spec.page = 16;
  spec.dense = 2;
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

// As the authors' code has it.
SelectorSpec blocks() {
  SelectorSpec spec;
  spec.kind = Kind::infllm;
  spec.init = 128;
  spec.local = 4096;
  spec.block = 128;
  spec.topk = 16;
  spec.representatives = 4;
  spec.span = 512;
  spec.resident = 32;
  return spec;
}

SelectorSpec kvzip() {
  SelectorSpec spec = quarter(Kind::kvzip);
  spec.sinks = 4;
  spec.chunk = 2048;
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
      SelectorEntry{"kvzip", kvzip(), "keep, sinks, recent, chunk, plus",
                    "KVzip: tokens that the model needs to repeat the prompt, which it is asked to "
                    "do once more; all heads of all layers compete for one budget (plus=1: "
                    "KVzip+, by what their values add to the residual stream)",
                    "2505.23416"},
      SelectorEntry{"duo", duo(), "gates, streaming, sinks, recent, interval, prompt",
                    "DuoAttention: heads with low gates keep the first and newest tokens, the "
                    "others all",
                    "2410.10819"},
      SelectorEntry{"quest", quest(), "budget, keep, page, dense, recent",
                    "every token stays; queries read the pages that may matter to them",
                    "2406.10774"},
      SelectorEntry{
          "infllm", blocks(), "total, init, local, block, topk, repr, span, resident, offload",
          "InfLLM: every token stays; those before a local window as blocks, in memory or "
          "in a file, of which each span of queries retrieves a few",
          "2402.04617"},
  };
  return kEntries;
}

#undef KVE_BUDGET

}  // namespace

std::span<const SelectorEntry> cache_selectors() { return entries(); }

const SelectorEntry* find_selector(std::string_view name) {
  const auto at = std::ranges::find(entries(), name, &SelectorEntry::name);
  return at == entries().end() ? nullptr : &*at;
}

const SelectorEntry& entry_of(const SelectorSpec& spec) {
  return spec.joint ? *find_selector("adakv") : scorer_of(spec.kind);
}

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

SelectorSpec scored_by(const SelectorEntry& scorer) {
  SelectorSpec spec = scorer.spec;
  spec.joint = true;
  spec.interval = 0;
  spec.alpha = adaptive().alpha;
  return spec;
}

void set_total(int tokens, SelectorSpec* spec) {
  spec->init = static_cast<int>(0.021 * tokens);
  spec->topk = static_cast<int>(0.324 * tokens) / 128;
  spec->local = std::max(512, tokens - spec->init - 128 * spec->topk);
  spec->resident = spec->topk;
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

SelectorSpec usual_of(const SelectorSpec& spec) {
  const SelectorEntry& entry = scorer_of(spec.kind);
  return spec.joint ? scored_by(entry) : entry.spec;
}

}  // namespace kve
