#include "cache/spec.h"

#include <algorithm>

#include "base/error.h"
#include "base/printable.h"
#include "cache/registry.h"
#include "cache/select/selector_stage.h"
#include "cache/spec_names.h"

namespace kve {
namespace {

// The parameters of a stage as they are written.
class Stage {
 public:
  explicit Stage(std::string_view name) : text_(name) {}
  template <class Value>
  void add(std::string_view key, const Value& value) {
    text_ += message(sign_, key, '=', value);
    sign_ = ',';
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
  char sign_ = ':';
};

std::string group_name(int group) {
  if (group == kWholeHead) return "head";
  return group == kWholeRow ? "row" : std::to_string(group);
}

void add_range(std::string_view key, int begin, int end, Stage* out) {
  if (begin == end) return;
  out->add(key, begin == end - 1 ? message(begin) : message(begin, '-', end - 1));
}

// What a stage is limited to.
struct Limits {
  LayerChoice layers;
  HeadChoice heads;
};

void add_limits(const Limits& limits, Stage* out) {
  const LayerChoice& layers = limits.layers;
  if (layers.first > 0) out->add("first", layers.first);
  if (layers.last > 0) out->add("last", layers.last);
  add_range("layers", layers.begin, layers.end, out);
  add_range("heads", limits.heads.begin, limits.heads.end, out);
}

// "block=4x4,bonds=12x3".
void add_chain(const ProjectorSpec& projector, Stage* out) {
  std::string sizes = message(projector.block);
  std::string bonds = message(projector.bond());
  bool truncated = projector.bonds[0] > 0;
  if (projector.sizes[0] > 0) sizes = message(projector.sizes[0]);
  for (size_t i = 1; i < kMaxMpoSizes && projector.sizes[i] > 0; ++i) {
    sizes += message('x', projector.sizes[i]);
    const int bond = projector.bonds[i];
    bonds += message('x', bond > 0 ? bond : mpo_rest(projector, i));
    truncated = truncated || bond > 0;
  }
  out->add("block", sizes);
  if (truncated) out->add("bonds", bonds);
}

// 400 as "0.4".
std::string thousandths_text(int value) {
  std::string digits = std::to_string(1000 + value).substr(1);
  while (digits.ends_with('0')) digits.pop_back();
  return "0." + digits;
}

std::string projector_stage(const ProjectorSpec& projector, const Limits& limits,
                            std::string_view bases) {
  using Kind = ProjectorSpec::Kind;
  Stage out(entry_of(projector.kind).name);
  if (projector.kind == Kind::mpo) add_chain(projector, &out);
  if (projector.calibrated) out.add("basis", bases);
  if (projector.rank > 0) out.add("rank", projector.rank);
  if (projector.share > 0) out.add("share", projector.share);
  if (projector.energy > 0) out.add("energy", projector.energy);
  if (projector.segment > 0) out.add("segment", projector.segment);
  if (projector.residual != Residual::none) {
    out.add("residual", kResidualNames[static_cast<size_t>(projector.residual)]);
  }
  if (projector.coefficients8) out.add("coefficients", kCoefficientNames[1]);
  if (projector.kind == Kind::klt && !projector.calibrated) {
    out.add("fit", projector.fit);
    out.add("anchor", projector.anchor);
  }
  if (projector.kind == Kind::rotation) out.add("seed", projector.seed);
  if (projector.kind == Kind::think) {
    out.add("ratio", thousandths_text(projector.pruned));
    out.add("window", projector.window);
  }
  add_limits(limits, &out);
  return out.take();
}

void add_coding(const CodecSpec& codec, Stage* out) {
  const CodecEntry& entry = entry_of(codec);
  if (!entry.is_free) return;
  const CodecSpec& usual = entry.spec;
  out->add("group", group_name(codec.group));
  if (codec.per != usual.per) out->add("per", kPerNames[static_cast<size_t>(codec.per)]);
  if (codec.coding.fit != usual.coding.fit) {
    out->add("fit", kFitNames[static_cast<size_t>(codec.coding.fit)]);
  }
  if (codec.coding.scale != usual.coding.scale) {
    out->add("scale", kScaleNames[static_cast<size_t>(codec.coding.scale)]);
  }
  if (codec.channels != usual.channels) {
    out->add("channels", kChannelNames[static_cast<size_t>(codec.channels)]);
  }
  if (codec.outliers > 0) out->add("outliers", message(codec.outliers, '%'));
}

std::string tier_stage(const TierSpec& tier, const Limits& limits) {
  Stage out(entry_of(tier.codec).name);
  add_coding(tier.codec, &out);
  out.add("older", tier.age);
  add_limits(limits, &out);
  return out.take();
}

// With `shared`, the parameters of the whole cache are written here.
std::string codec_stage(const SideSpec& side, const Limits& limits, const CacheSpec* shared) {
  const CodecEntry& entry = entry_of(side.codec);
  Stage out(entry.name);
  add_coding(side.codec, &out);
  if (side.tail != 0 || entry.default_tail != 0) out.add("tail", side.tail);
  if (side.seal != Seal::page) out.add("seal", kSealNames[static_cast<size_t>(side.seal)]);
  if (shared != nullptr && shared->sinks > 0) out.add("sinks", shared->sinks);
  if (shared != nullptr && shared->exact_prefill) out.add("prefill", kPrefillNames[1]);
  add_limits(limits, &out);
  return out.take();
}

std::string side_text(const SideSpec& side, std::string_view prefix, const Limits& limits,
                      const CacheSpec* shared, std::string_view bases) {
  std::string out;
  if (side.projector.kind != ProjectorSpec::Kind::none) {
    out = message(prefix, projector_stage(side.projector, limits, bases), "+");
  }
  out += message(prefix, codec_stage(side, limits, shared));
  for (const TierSpec& tier : side.older) out += message("+", prefix, tier_stage(tier, limits));
  return out;
}

// Writes sides one after the other. The parameters of the whole cache stand with the first side
// that is coded.
class SpecText {
 public:
  explicit SpecText(const CacheSpec& spec) : spec_(spec) {}

  void add(std::string stage) { text_ = std::move(stage); }
  void add(const SideSpec* k, const SideSpec* v, const Limits& limits) {
    if (k != nullptr && v != nullptr && *k == *v) return add(*k, "", limits);
    if (k != nullptr) add(*k, "k=", limits);
    if (v != nullptr) add(*v, "v=", limits);
  }
  std::string take() { return std::move(text_); }

 private:
  void add(const SideSpec& side, std::string_view prefix, const Limits& limits) {
    const bool carries = !carried_ && !side.codec.is_float();
    carried_ = carried_ || carries;
    if (!text_.empty()) text_ += '+';
    text_ += side_text(side, prefix, limits, carries ? &spec_ : nullptr, spec_.bases);
  }

  const CacheSpec& spec_;
  std::string text_;
  bool carried_ = false;
};

// Rows that must be coded together.
int rows_per_unit(const CodecSpec& codec) {
  return codec.is_float() ? 1 : kve::rows_per_unit(page_format(codec, kPageTokens, false));
}

bool is_within(int value, int low, int high) { return value >= low && value <= high; }

bool is_pages(int rows) { return is_within(rows, kPageTokens, 65536) && rows % kPageTokens == 0; }

bool is_valid_calibrated(const ProjectorSpec& projector) {
  const ProjectorSpec allowed = {.kind = projector.kind,
                                 .rank = projector.rank,
                                 .anchor = 1,
                                 .calibrated = true,
                                 .share = projector.share,
                                 .energy = projector.energy};
  const int given = (projector.rank > 0) + (projector.share > 0) + (projector.energy > 0);
  return projector == allowed && given == 1 && is_within(projector.rank, 0, 65536) &&
         is_within(projector.share, 0, 100) && is_within(projector.energy, 0, 100);
}

bool is_valid_chain(const ProjectorSpec& projector) {
  const auto& sizes = projector.sizes;
  // One tensor has no sizes of its own.
  size_t n = 0;
  while (n < kMaxMpoSizes && sizes[n] != 0) {
    if (!is_within(sizes[n++], 2, kMaxMpoBlock)) return false;
  }
  if (n == 1 || (n > 0 && mpo_rest(projector, 0) != projector.block)) return false;
  for (size_t i = 0; i < kMaxMpoSizes; ++i) {
    if (i >= n && sizes[i] != 0) return false;
    const bool exists = i == 0 || i < n;
    const int rest = exists ? mpo_rest(projector, i) : 1;
    if (!is_within(projector.bonds[i], 0, rest - 1)) return false;
  }
  return true;
}

bool is_valid(const ProjectorSpec& projector) {
  using Kind = ProjectorSpec::Kind;
  switch (projector.kind) {
    case Kind::none:
    case Kind::hadamard:
      return projector == ProjectorSpec{.kind = projector.kind};
    case Kind::rotation:
      return projector == ProjectorSpec{.kind = projector.kind, .seed = projector.seed} &&
             projector.seed <= INT32_MAX;
    case Kind::mpo:
      return is_within(projector.block, 2, kMaxMpoBlock) && is_pages(projector.segment) &&
             is_valid_chain(projector);
    case Kind::lowrank:
      if (projector.calibrated) return is_valid_calibrated(projector);
      return is_within(projector.rank, 1, 65536) && is_pages(projector.segment) &&
             projector.share == 0 && projector.energy == 0 &&
             (projector.residual != Residual::none || !projector.coefficients8);
    case Kind::klt:
      if (projector.calibrated) return projector == calibrated_klt();
      return is_pages(projector.fit) &&
             (is_within(projector.anchor, 0, 1) || projector.anchor == kPageTokens);
    case Kind::think:
      return projector == ProjectorSpec{.kind = projector.kind,
                                        .pruned = projector.pruned,
                                        .window = projector.window} &&
             is_within(projector.pruned, 1, 999) && is_within(projector.window, 1, kMaxThinkWindow);
  }
  return false;
}

std::string coding_error(const CodecSpec& codec) {
  const CodecEntry* entry = find_entry(codec);
  if (entry == nullptr) return "such a codec has no name";
  if (!entry->is_free) {
    return codec == entry->spec ? "" : message(entry->name, " has no parameters of its coding");
  }
  if (!is_valid(codec.coding)) return message(entry->name, " has no such fit");
  const bool named = codec.group == kWholeHead || codec.group == kWholeRow;
  if (!named && std::ranges::find(kCacheGroups, codec.group) == std::end(kCacheGroups)) {
    return message(entry->name, " has no group of ", codec.group, " values");
  }
  if (!is_within(codec.outliers, 0, kMaxOutliers)) {
    return message("outliers: expected 0% to ", kMaxOutliers, "%, found ", codec.outliers, "%");
  }
  if (codec.per == Per::token) return "";
  if (named || codec.group > kPageTokens) {
    return message(entry->name, " with per=channel needs a group of 8, 16, 32 or 64 tokens");
  }
  if (codec.channels != Channels::centred) return "";
  return message(entry->name, " with per=channel has no channels=",
                 kChannelNames[static_cast<size_t>(codec.channels)]);
}

std::string tiers_error(const SideSpec& side) {
  if (side.older.empty()) return "";
  if (side.codec.is_float()) {
    return "older: expected pages of codes, found floats; tail= keeps the newest rows exact";
  }
  if (side.eager()) {
    return "older: expected a tail, found tail=0; rows that are coded on arrival have none to "
           "return to from a page that was coded anew";
  }
  if (side.n_tiers() > static_cast<int>(kMaxTiers)) {
    return message("older: expected at most ", kMaxTiers - 1, " ages, found ", side.older.size());
  }
  const TierSpec now{0, side.codec};
  const TierSpec* before = &now;
  for (const TierSpec& tier : side.older) {
    if (tier.age <= before->age || tier.age > kMaxTail) {
      return message("older: expected different ages of 1 to ", kMaxTail, ", found ", tier.age);
    }
    const std::string error = coding_error(tier.codec);
    if (!error.empty()) return error;
    if (tier.codec.is_float() || tier.codec.coding.bits > before->codec.coding.bits) {
      return message("older: expected codes of fewer bits with age, found ",
                     entry_of(tier.codec).name, " after ", entry_of(before->codec).name);
    }
    const bool shared =
        side.codec.group == kWholeRow || side.projector.kind == ProjectorSpec::Kind::mpo;
    if (tier.codec.group == kWholeRow && !shared) {
      return "older: expected groups within a head, as the side's first codec has them, found "
             "group=row";
    }
    before = &tier;
  }
  return "";
}

std::string side_error(const SideSpec& side, bool values) {
  if (values && side.projector == calibrated_klt()) {
    return "klt: expected bases of keys, which are all that `kvengine calibrate --bases` finds; "
           "use "
           "k=klt";
  }
  if (values && side.projector.kind == ProjectorSpec::Kind::think) {
    return "think: expected keys, whose channels queries judge, found values; use k=think";
  }
  if (!is_valid(side.projector)) return "a parameter of the projector is out of its range";
  if (side.projector.residual != Residual::none) {
    if (side.codec.is_float()) return "residual: expected codes beside coefficients, found floats";
    if (!side.older.empty()) return "residual: expected codes of one age, found older=";
  }
  std::string error = coding_error(side.codec);
  if (!error.empty()) return error;
  if (!is_within(side.tail, 0, kMaxTail)) {
    return message("tail: expected 0 to ", kMaxTail, ", found ", side.tail);
  }
  if (side.codec.is_float() && (side.tail != 0 || side.seal != Seal::page)) {
    return "floats have no tail and no rule of sealing";
  }
  error = tiers_error(side);
  if (!error.empty()) return error;
  if (side.seal != Seal::window) return "";
  if (side.projector.segment > 0) {
    return message("seal=window does not go with ", entry_of(side.projector.kind).name,
                   ", which seals segments");
  }
  const int unit = rows_per_unit(side.codec);
  if (side.tail > 0 && side.tail % unit == 0) return "";
  return message("seal=window needs a tail of ", unit, " tokens or a multiple, found ", side.tail);
}

// Blocks of infllm are pages of one head, coded when they leave the local window. That and the
// first tokens are in f16, whatever a tail and sinks ask for.
std::string blocks_error(const CacheSpec& spec) {
  const SelectorSpec& blocks = spec.selector;
  const auto fits = [&](const SideSpec& side) {
    return side.projector.kind == ProjectorSpec::Kind::none && side.older.empty() &&
           side.tail <= blocks.local && side.seal == Seal::page && side.codec.group != kWholeRow;
  };
  const auto fits_if = [&](const std::optional<SideSpec>& side) { return !side || fits(*side); };
  bool fit = fits(spec.k) && fits(spec.v) && spec.sinks <= blocks.init && !spec.exact_prefill;
  for (const LayerRule& rule : spec.rules) fit = fit && fits_if(rule.k) && fits_if(rule.v);
  if (fit) return "";
  return message(
      "infllm: expected a codec of its blocks and no projector, prefill=, seal=, older= or "
      "group=row, a tail of at most the local=",
      blocks.local, " and sinks of at most the init=", blocks.init, " tokens");
}

std::string bases_error(const CacheSpec& spec) {
  bool calibrated = spec.k.projector.calibrated || spec.v.projector.calibrated;
  for (const LayerRule& rule : spec.rules) {
    calibrated = calibrated || (rule.k && rule.k->projector.calibrated);
    calibrated = calibrated || (rule.v && rule.v->projector.calibrated);
  }
  if (calibrated == spec.bases.empty()) {
    return calibrated ? "basis: expected the file of calibrated bases, found none"
                      : "basis: expected no file, as nothing is calibrated";
  }
  if (spec.bases.size() > kMaxBasesPath) {
    return message("basis: expected a path of at most ", kMaxBasesPath, " bytes, found ",
                   spec.bases.size());
  }
  const bool writable = std::ranges::all_of(spec.bases, [](char c) {
    return static_cast<unsigned char>(c) > ' ' && c != 0x7f &&
           kSpecSigns.find(c) == kSpecSigns.npos;
  });
  return writable ? ""
                  : message("basis: expected a path without blanks and the signs ", kSpecSigns);
}

}  // namespace

bool SideSpec::eager() const {
  return tail == 0 && seal == Seal::page && projector.is_fixed() && rows_per_unit(codec) == 1;
}

int SideSpec::unit() const {
  if (projector.segment > 0) return projector.segment;
  if (seal == Seal::window) return tail;
  return seal == Seal::row ? rows_per_unit(codec) : kPageTokens;
}

std::string SideSpec::str() const { return side_text(*this, "", {}, nullptr, "FILE"); }

bool SideSpec::seals_with(const SideSpec& other) const {
  return projector == other.projector && tail == other.tail && seal == other.seal &&
         rows_per_unit(codec) == rows_per_unit(other.codec);
}

const SideSpec& CacheSpec::side(int layer, int n_layers, int head, bool values) const {
  const SideSpec* found = values ? &v : &k;
  for (const LayerRule& rule : rules) {
    const std::optional<SideSpec>& own = values ? rule.v : rule.k;
    if (own && rule.has(layer, n_layers, head)) found = &*own;
  }
  return *found;
}

std::string CacheSpec::error() const {
  const auto check = [](const SideSpec& side, bool values) {
    const std::string error = side_error(side, values);
    return error.empty() ? error : message(values ? "values: " : "keys: ", error);
  };
  std::string error = check(k, false);
  if (error.empty()) error = check(v, true);
  for (const LayerRule& rule : rules) {
    const LayerChoice& layers = rule.layers;
    const bool sane =
        is_within(layers.first, 0, kMaxSpecLayers) && is_within(layers.last, 0, kMaxSpecLayers) &&
        is_within(layers.begin, 0, layers.end) && layers.end <= kMaxSpecLayers &&
        is_within(rule.heads.begin, 0, rule.heads.end) && rule.heads.end <= kMaxSpecHeads;
    const bool some = !layers.empty() || !rule.heads.empty();
    if (error.empty() && (!sane || !some)) error = "a rule for impossible layers or heads";
    if (error.empty() && rule.k) error = check(*rule.k, false);
    if (error.empty() && rule.v) error = check(*rule.v, true);
  }
  if (!error.empty()) return error;
  if (!is_within(sinks, 0, kMaxSinks)) {
    return message("sinks: expected 0 to ", kMaxSinks, ", found ", sinks);
  }
  error = selector_error(selector);
  if (!error.empty()) return error;
  if (selector.uses_blocks()) {
    error = blocks_error(*this);
    if (!error.empty()) return error;
  }
  return bases_error(*this);
}

bool CacheSpec::prunes_channels() const {
  const auto prunes = [](const SideSpec& side) {
    return side.projector.kind == ProjectorSpec::Kind::think;
  };
  return prunes(k) || std::ranges::any_of(
                          rules, [&](const LayerRule& rule) { return rule.k && prunes(*rule.k); });
}

std::string CacheSpec::str() const {
  SpecText text(*this);
  if (selector.kind != SelectorSpec::Kind::full) text.add(selector_text(selector));
  text.add(&k, &v, {});
  for (const LayerRule& rule : rules) {
    text.add(rule.k ? &*rule.k : nullptr, rule.v ? &*rule.v : nullptr, {rule.layers, rule.heads});
  }
  return text.take();
}

}  // namespace kve
