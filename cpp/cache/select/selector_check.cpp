// What selectors refuse.
#include <algorithm>

#include "base/error.h"
#include "cache/select/selector_list.h"
#include "cache/spec_names.h"
#include "formats/cache_codecs.h"

namespace kve {
namespace {

using Kind = SelectorSpec::Kind;

constexpr size_t kMaxGatesPath = 4096;

constexpr size_t kMaxFolder = 4096;

bool is_pooled(Kind kind) { return kind == Kind::snapkv || kind == Kind::pyramidkv; }

std::string blocks_error(const SelectorSpec& spec) {
  if (spec.span > spec.local) {
    return message("span: expected at most the local=", spec.local, " tokens, found ", spec.span);
  }
  if (spec.block % kPageTokens != 0) {
    return message("block: expected a multiple of ", kPageTokens, " tokens, found ", spec.block);
  }
  if (spec.representatives > spec.block) {
    return message("repr: expected at most the block=", spec.block, " tokens, found ",
                   spec.representatives);
  }
  if (spec.offload.empty()) return "";
  if (spec.resident < spec.topk) {
    return message("resident: expected at least the topk=", spec.topk,
                   " blocks that are retrieved, found ", spec.resident);
  }
  const bool writable = std::ranges::all_of(spec.offload, [](char c) {
    return static_cast<unsigned char>(c) > ' ' && c != 0x7f &&
           kSpecSigns.find(c) == kSpecSigns.npos;
  });
  if (!writable || spec.offload.size() > kMaxFolder) {
    return message("offload: expected a folder of at most ", kMaxFolder,
                   " bytes, without blanks and the signs ", kSpecSigns);
  }
  return "";
}

}  // namespace

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
  if (spec.tokens < 0 || spec.tokens > 2 * kMaxSelectorTokens) {
    return message("keep: expected 0 to ", 2 * kMaxSelectorTokens, " tokens, found ", spec.tokens);
  }
  if (is_pooled(spec.kind) && spec.kernel % 2 == 0) {
    return message("kernel: expected an odd number, found ", spec.kernel);
  }
  if (spec.kind == Kind::h2o_realdrop && spec.tokens < 1) {
    return "heavy: expected at least one heavy or recent token that stays, found none";
  }
  if (spec.kind == Kind::quest && spec.page != 16 && spec.page != 32 && spec.page != 64) {
    return message("page: expected 16, 32 or 64, found ", spec.page);
  }
  if (spec.kind == Kind::quest && spec.tokens > 0 && spec.tokens < spec.page + spec.recent) {
    return message("budget: expected at least a page of ", spec.page, " and the ", spec.recent,
                   " recent tokens that are always read, found ", spec.tokens);
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
    return "duo needs gates=FILE, which kvengine calibrate --gates writes: a line per layer of "
           "numbers from 0 to 1, one per kv head";
  }
  if (spec.kind == Kind::duo && spec.sinks + spec.recent == 0) {
    return "duo needs sinks or recent tokens that streaming heads keep, found none";
  }
  if (spec.gates.size() > kMaxGatesPath) {
    return message("gates: expected a path of at most ", kMaxGatesPath, " bytes, found ",
                   spec.gates.size());
  }
  return spec.kind == Kind::infllm ? blocks_error(spec) : "";
}

std::string selector_room_error(const SelectorSpec& spec, int n_ctx) {
  const SelectorSpec usual = usual_of(spec);
  const bool keeps = spec.kind != Kind::quest && spec.kind != Kind::infllm;
  if (keeps && spec.tokens != usual.tokens && spec.tokens > n_ctx) {
    return message(spec.kind == Kind::h2o_realdrop ? "heavy and recent" : "keep",
                   ": expected at most the ", n_ctx, " tokens of the session (n_ctx), found ",
                   spec.tokens);
  }
  if (is_pooled(spec.kind) && spec.window != usual.window && spec.window >= n_ctx) {
    return message("window: expected fewer than the ", n_ctx,
                   " tokens of the session (n_ctx), found ", spec.window);
  }
  const int always = std::max(spec.sinks, 0) + std::max(spec.recent, 0);
  const bool given = spec.sinks != usual.sinks || spec.recent != usual.recent;
  if (keeps && given && always > n_ctx) {
    return message("sinks and recent: expected at most the ", n_ctx,
                   " tokens of the session (n_ctx), found ", always);
  }
  return "";
}

}  // namespace kve
