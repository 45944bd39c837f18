#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/printable.h"
#include "cache/registry.h"
#include "cache/select/selector_stage.h"
#include "cache/spec.h"
#include "cache/spec_names.h"
#include "cache/spec_words.h"

namespace kve {
namespace {

using Word = SpecWord;
using Parameter = SpecParameter;

// What the stages for the same layers said so far.
struct Found {
  struct Side {
    std::optional<ProjectorSpec> projector;
    std::optional<SideSpec> codec;  // without the projector
    bool any_group = false;         // of the codec: none was asked for
    std::vector<TierSpec> older;
    // What stages of `older` want beside, which the side must have.
    std::vector<std::pair<Word, ProjectorSpec>> expected;
  };
  LayerChoice layers;
  HeadChoice heads;
  Side k;
  Side v;
  std::optional<int> sinks;
  std::optional<bool> exact_prefill;
  std::optional<std::string> bases;
};

class Parser : private SpecWords {
 public:
  explicit Parser(std::string_view text) : SpecWords(text) {}

  CacheSpec parse() {
    do {
      stage();
    } while (take('+'));
    if (!at_end()) {
      fail(at(), "expected '+' or the end, found " + quoted(next()));
    }
    CacheSpec spec;
    spec.k = side_of(found_[0].k).value_or(SideSpec{});
    spec.v = side_of(found_[0].v).value_or(SideSpec{});
    bool codes = !spec.k.codec.is_float() || !spec.v.codec.is_float();
    for (size_t i = 1; i < found_.size(); ++i) {
      spec.rules.push_back(
          {found_[i].layers, found_[i].heads, side_of(found_[i].k), side_of(found_[i].v)});
      const LayerRule& rule = spec.rules.back();
      codes = codes || (rule.k && !rule.k->codec.is_float());
      codes = codes || (rule.v && !rule.v->codec.is_float());
    }
    // A cache that codes nothing has no use for them.
    if (codes) {
      spec.sinks = sinks_.value_or(0);
      spec.exact_prefill = exact_prefill_.value_or(false);
    }
    spec.bases = bases_.value_or("");
    spec.selector = selector_.value_or(SelectorSpec{});
    const std::string error = spec.error();
    if (!error.empty()) throw ConfigError(message("cache spec ", quoted(text()), ": ", error));
    return spec;
  }

 private:
  std::optional<SideSpec> side_of(const Found::Side& found) const {
    if (!found.codec && !found.projector && found.older.empty()) return std::nullopt;
    SideSpec side = found.codec.value_or(SideSpec{});
    if (found.projector) side.projector = *found.projector;
    // Hardly a group that a codec has by itself divides the channels that are left.
    const bool prunes = side.projector.kind == ProjectorSpec::Kind::think;
    if (prunes && found.any_group && side.codec.per == Per::token) side.codec.group = kWholeHead;
    side.older.insert(side.older.end(), found.older.begin(), found.older.end());
    std::ranges::stable_sort(side.older, {}, &TierSpec::age);
    for (const auto& [name, projector] : found.expected) {
      if (projector == side.projector) continue;
      fail(name.at, message(quoted(name.text),
                            " has another projector than the side whose older pages it is for; "
                            "these keep theirs, and change nothing but how values are coded"));
    }
    return side;
  }

  Found* found_for(const LayerChoice& layers, const HeadChoice& heads) {
    for (Found& found : found_) {
      if (found.layers == layers && found.heads == heads) return &found;
    }
    found_.push_back({});
    found_.back().layers = layers;
    found_.back().heads = heads;
    return &found_.back();
  }

  void stage() {
    Word name = word("the name of a cache");
    bool k = true;
    bool v = true;
    if (take('=')) {
      if (name.text != "k" && name.text != "v") {
        fail(name.at, message("expected k= or v= before a name, found ", quoted(name.text), "="));
      }
      k = name.text == "k";
      v = !k;
      name = word("the name of a cache");
    }
    std::vector<Parameter> given = parameters();
    if (const SelectorEntry* entry = find_selector(name.text)) {
      if (!k || !v) fail(name.at, message(quoted(name.text), " is for keys and values together"));
      if (selector_) fail(name.at, message(quoted(name.text), " is a second selector"));
      selector_ = selected(*entry, given);
      return;
    }
    const LayerChoice layers = take_layers(&given);
    Found* found = found_for(layers, take_heads(&given));
    if (const std::optional<int> age = take_age(&given)) {
      const Found said = resolve_tier(name, given);
      if (k) add_tier(name, *age, said.k, &found->k);
      if (v) add_tier(name, *age, said.v, &found->v);
      return;
    }
    Found said = resolve(name, given);
    if (said.k.projector && said.k.projector->kind == ProjectorSpec::Kind::think) {
      if (!k) fail(name.at, "think leaves out channels of keys; expected k=think, found v=think");
      said.v = {};
    }
    if (k) take_over(name, "keys", said.k, &found->k);
    if (v) take_over(name, "values", said.v, &found->v);
    take_over(name, "sinks", said.sinks, &sinks_);
    take_over(name, "prefill", said.exact_prefill, &exact_prefill_);
    take_over(name, "basis", said.bases, &bases_);
  }

  SelectorSpec selected(const SelectorEntry& entry, const std::vector<Parameter>& given) const {
    std::vector<SelectorParameter> words;
    for (const auto& [key, value] : given) words.push_back({key.text, value.text});
    return parse_selector(entry, words, [&](size_t i, bool of_value, const std::string& what) {
      fail(of_value ? given[i].value.at : given[i].key.at, what);
    });
  }

  // The layers that a stage is limited to; empty for all.
  LayerChoice take_layers(std::vector<Parameter>* given) const {
    LayerChoice layers;
    std::erase_if(*given, [&](const Parameter& parameter) {
      const auto& [key, value] = parameter;
      if (key.text == "first") {
        layers.first = number(key, value, 1, kMaxSpecLayers);
      } else if (key.text == "last") {
        layers.last = number(key, value, 1, kMaxSpecLayers);
      } else if (key.text == "layers") {
        std::tie(layers.begin, layers.end) = range(key, value, kMaxSpecLayers);
      } else {
        return false;
      }
      return true;
    });
    return layers;
  }

  // The kv heads that a stage is limited to; empty for all.
  HeadChoice take_heads(std::vector<Parameter>* given) const {
    HeadChoice heads;
    std::erase_if(*given, [&](const Parameter& parameter) {
      const bool named = parameter.key.text == "heads";
      if (named) {
        std::tie(heads.begin, heads.end) = range(parameter.key, parameter.value, kMaxSpecHeads);
      }
      return named;
    });
    return heads;
  }

  // The age of the pages that a stage is for; none: it is for all.
  std::optional<int> take_age(std::vector<Parameter>* given) const {
    std::optional<int> age;
    std::erase_if(*given, [&](const Parameter& parameter) {
      const bool named = parameter.key.text == "older";
      if (named) age = number(parameter.key, parameter.value, 1, kMaxTail);
      return named;
    });
    return age;
  }

  Found resolve_tier(const Word& name, const std::vector<Parameter>& given) const {
    for (const auto& [key, value] : given) {
      for (const std::string_view shared : {"tail", "seal", "sinks", "prefill"}) {
        if (key.text != shared) continue;
        fail(key.at, message("a stage with older= changes nothing but how values are coded; ",
                             shared, "= stands with the side's first codec"));
      }
    }
    return resolve(name, given);
  }

  void add_tier(const Word& name, int age, const Found::Side& given, Found::Side* found) const {
    if (!given.codec || !given.codec->older.empty()) {
      fail(name.at,
           message("older: expected one codec, or a preset of one, found ", quoted(name.text)));
    }
    found->older.push_back({age, given.codec->codec});
    if (given.projector) found->expected.emplace_back(name, *given.projector);
  }

  void take_over(const Word& name, std::string_view side, const Found::Side& given,
                 Found::Side* found) const {
    const bool twice = (given.codec && found->codec) || (given.projector && found->projector);
    if (twice) fail(name.at, message(quoted(name.text), " is a second choice for the ", side));
    if (given.codec) {
      found->codec = given.codec;
      found->any_group = given.any_group;
    }
    if (given.projector) found->projector = given.projector;
  }

  template <class Value>
  void take_over(const Word& name, std::string_view what, const std::optional<Value>& given,
                 std::optional<Value>* found) const {
    if (!given) return;
    if (*found && **found != *given) {
      fail(name.at, message(quoted(name.text), ": ", what,
                            " differs from an earlier stage; both "
                            "sides share it"));
    }
    *found = given;
  }

  std::vector<Parameter> parameters() {
    std::vector<Parameter> out;
    if (!take(':')) return out;
    do {
      const Word key = word("the name of a parameter");
      if (!take('=')) fail(at(), message("expected '=' after ", quoted(key.text)));
      const Word value = word("a value");
      for (const Parameter& earlier : out) {
        if (earlier.key.text == key.text) {
          fail(key.at, message("parameter ", quoted(key.text), " is given twice"));
        }
      }
      out.push_back({key, value});
    } while (take(','));
    return out;
  }

  Found resolve(const Word& name, const std::vector<Parameter>& given) const {
    Found found;
    if (const CodecEntry* entry = find_codec(name.text)) {
      found.k.codec = found.v.codec = coded_side(*entry, given, &found);
      const auto is_group = [](const Parameter& one) { return one.key.text == "group"; };
      found.k.any_group = entry->is_free && std::ranges::none_of(given, is_group);
      return found;
    }
    if (const ProjectorEntry* entry = find_projector(name.text)) {
      found.k.projector = found.v.projector = projector(*entry, given, &found);
      return found;
    }
    if (const CachePreset* preset = find_preset(name.text)) {
      const CacheSpec spec = Parser(preset->spec).parse();
      check_parameters(name, *preset, !spec.bases.empty(), given);
      if (!spec.bases.empty()) found.bases = given[0].value.text;
      const auto split = [](const SideSpec& from, Found::Side* to) {
        to->codec = from;
        if (from.projector.kind != ProjectorSpec::Kind::none) to->projector = from.projector;
        to->codec->projector = {};
      };
      split(spec.k, &found.k);
      split(spec.v, &found.v);
      found.sinks = spec.sinks;
      found.exact_prefill = spec.exact_prefill;
      return found;
    }
    const std::string_view nearest = nearest_cache_name(name.text);
    const std::string hint = nearest.empty() ? "" : message("; did you mean ", nearest, "?");
    fail(name.at,
         message("unknown name ", quoted(name.text), "; known: ", known_cache_names(), hint));
  }

  // What a preset stands for is fixed, but for the file that it may read.
  void check_parameters(const Word& name, const CachePreset& preset, bool reads_file,
                        const std::vector<Parameter>& given) const {
    for (const Parameter& parameter : given) {
      if (reads_file && parameter.key.text == "basis") continue;
      fail(parameter.key.at,
           message("the preset ", preset.name, " has no parameters but ",
                   reads_file ? "basis, " : "",
                   "first, last, layers, heads and older; it stands for ", preset.spec));
    }
    if (reads_file && given.empty()) {
      fail(name.at, message("the preset ", preset.name,
                            " needs basis=FILE, which `kvengine calibrate --bases` writes"));
    }
  }

  [[noreturn]] void fail_parameter(std::string_view stage, const Word& key,
                                   std::string_view known) const {
    fail(key.at, message(stage, " has no parameter ", quoted(key.text), "; ",
                         known.empty() ? "it has none" : "known: ", known));
  }

  SideSpec coded_side(const CodecEntry& entry, const std::vector<Parameter>& given,
                      Found* found) const {
    SideSpec side;
    side.codec = entry.spec;
    side.tail = entry.default_tail;
    for (const auto& [key, value] : given) {
      if (entry.spec.is_float()) fail_parameter(entry.name, key, "");
      if (entry.is_free && set_coding(key.text, value, &side.codec)) continue;
      if (key.text == "tail") {
        side.tail = number(key, value, 0, kMaxTail);
      } else if (key.text == "seal") {
        side.seal = one_of<Seal>(key, value, kSealNames);
      } else if (key.text == "sinks") {
        found->sinks = number(key, value, 0, kMaxSinks);
      } else if (key.text == "prefill") {
        found->exact_prefill = one_of<bool>(key, value, kPrefillNames);
      } else {
        fail_parameter(entry.name, key,
                       entry.is_free
                           ? "group, per, fit, scale, channels, outliers, tail, seal, sinks, "
                             "prefill"
                           : "tail, seal, sinks, prefill");
      }
    }
    check_fit(entry, given);
    return side;
  }

  // Whether the parameter is one of how values are coded.
  bool set_coding(std::string_view key, const Word& value, CodecSpec* codec) const {
    if (key == "group") {
      codec->group = group_of(value);
    } else if (key == "per") {
      codec->per = one_of<Per>({key}, value, kPerNames);
    } else if (key == "fit") {
      codec->coding.fit = one_of<Fit>({key}, value, kFitNames);
    } else if (key == "scale") {
      codec->coding.scale = one_of<ScaleFormat>({key}, value, kScaleNames);
    } else if (key == "channels") {
      codec->channels = one_of<Channels>({key}, value, kChannelNames);
    } else if (key == "outliers") {
      codec->outliers = per_cent({key}, value, kMaxOutliers);
    } else {
      return false;
    }
    return true;
  }

  void check_fit(const CodecEntry& entry, const std::vector<Parameter>& given) const {
    CodecSpec codec = entry.spec;
    for (const auto& [key, value] : given) {
      if (!entry.is_free || !set_coding(key.text, value, &codec)) continue;
      const bool lloyd = codec.coding.coding == Coding::lloyd;
      const Fit fit = codec.coding.fit;
      const bool fits =
          lloyd ? fit >= Fit::norm
                : fit == Fit::range || (fit == Fit::search && codec.coding.coding == Coding::asym);
      if (key.text == "fit" && !fits) {
        fail(value.at, message(entry.name, " has no fit ", quoted(value.text), "; known: ",
                               lloyd                                 ? "norm, energy, least"
                               : codec.coding.coding == Coding::asym ? "range, search"
                                                                     : "range"));
      }
    }
  }

  ProjectorSpec projector(const ProjectorEntry& entry, const std::vector<Parameter>& given,
                          Found* found) const {
    using Kind = ProjectorSpec::Kind;
    ProjectorSpec spec = entry.spec;
    for (const auto& [key, value] : given) {
      if (key.text != "basis" || (spec.kind != Kind::lowrank && spec.kind != Kind::klt)) continue;
      found->bases = value.text;
      return spec.kind == Kind::klt ? calibrated_klt(given) : calibrated(entry, given);
    }
    for (const auto& [key, value] : given) {
      if ((key.text == "block" || key.text == "bonds") && spec.kind == Kind::mpo) {
        continue;  // chain()
      } else if (key.text == "segment" && spec.segment > 0) {
        spec.segment = pages(key, value);
      } else if (key.text == "rank" && spec.kind == Kind::lowrank) {
        spec.rank = number(key, value, 1, 65536);
      } else if (key.text == "residual" && spec.kind == Kind::lowrank) {
        spec.residual = one_of<Residual>(key, value, kResidualNames);
      } else if (key.text == "coefficients" && spec.kind == Kind::lowrank) {
        spec.coefficients8 = one_of<bool>(key, value, kCoefficientNames);
      } else if (key.text == "fit" && spec.kind == Kind::klt) {
        spec.fit = pages(key, value);
      } else if (key.text == "anchor" && spec.kind == Kind::klt) {
        spec.anchor = number(key, value, 0, kPageTokens);
        if (spec.anchor > 1 && spec.anchor < kPageTokens) {
          fail(value.at, message("anchor: expected 0, 1 or 64, found ", quoted(value.text)));
        }
      } else if (key.text == "ratio" && spec.kind == Kind::think) {
        spec.pruned = thousandths(key, value);
      } else if (key.text == "window" && spec.kind == Kind::think) {
        spec.window = number(key, value, 1, kMaxThinkWindow);
      } else if (key.text == "seed" && spec.kind == Kind::rotation) {
        spec.seed = static_cast<uint64_t>(number(key, value, 0, INT32_MAX));
      } else {
        fail_parameter(entry.name, key, entry.parameters);
      }
    }
    if (spec.kind == Kind::mpo) chain(given, &spec);
    return spec;
  }

  // The tensors of an mpo: sizes first, which say how large bonds may be.
  void chain(const std::vector<Parameter>& given, ProjectorSpec* spec) const {
    for (const auto& [key, value] : given) {
      if (key.text != "block") continue;
      const std::vector<int> sizes = numbers(key, value, kMaxMpoSizes, 2, kMaxMpoBlock);
      if (sizes.size() > 1) std::ranges::copy(sizes, spec->sizes.begin());
      spec->block = sizes.size() > 1 ? mpo_rest(*spec, 0) : sizes[0];
      if (spec->block > kMaxMpoBlock) {
        fail(value.at, message("block: expected sizes of at most ", kMaxMpoBlock,
                               " values together, found ", quoted(value.text)));
      }
    }
    size_t n = 1;
    while (n < kMaxMpoSizes && spec->sizes[n] > 0) ++n;
    for (const auto& [key, value] : given) {
      if (key.text != "bonds") continue;
      const std::vector<int> bonds = numbers(key, value, kMaxMpoSizes, 1, kMaxMpoBlock);
      if (bonds.size() != n) {
        fail(value.at, message("bonds: expected ", n, ", one for each size of the block, found ",
                               quoted(value.text)));
      }
      for (size_t i = 0; i < n; ++i) {
        const int rest = mpo_rest(*spec, i);
        if (bonds[i] > rest) {
          fail(value.at, message("bonds: expected at most ", rest, " before tensor ", i + 1,
                                 ", found ", bonds[i]));
        }
        spec->bonds[i] = bonds[i] < rest ? bonds[i] : 0;
      }
    }
  }

  ProjectorSpec calibrated_klt(const std::vector<Parameter>& given) const {
    for (const auto& [key, value] : given) {
      if (key.text != "basis") fail_parameter("klt with a basis", key, "basis");
    }
    return kve::calibrated_klt();
  }

  // lowrank with bases from a file.
  ProjectorSpec calibrated(const ProjectorEntry& entry, const std::vector<Parameter>& given) const {
    ProjectorSpec spec = {.kind = entry.spec.kind, .anchor = 1, .calibrated = true};
    for (const auto& [key, value] : given) {
      if (key.text == "basis") continue;
      if (spec.rank + spec.share + spec.energy > 0) {
        fail(key.at, "expected one of rank, share and energy, found another");
      }
      if (key.text == "rank") {
        spec.rank = number(key, value, 1, 65536);
      } else if (key.text == "share") {
        spec.share = number(key, value, 1, 100);
      } else if (key.text == "energy") {
        spec.energy = number(key, value, 1, 100);
      } else {
        fail_parameter("lowrank with a basis", key, "basis, rank, share, energy");
      }
    }
    if (spec.rank + spec.energy == 0 && spec.share == 0) spec.share = 50;
    return spec;
  }

  std::vector<Found> found_{1};  // the first for all layers
  std::optional<int> sinks_;
  std::optional<bool> exact_prefill_;
  std::optional<std::string> bases_;
  std::optional<SelectorSpec> selector_;
};

}  // namespace

CacheSpec CacheSpec::parse(std::string_view text) {
  if (text.size() > kMaxSpecLength) {
    throw ConfigError(message("cache spec: expected at most ", kMaxSpecLength,
                              " characters, found ", text.size()));
  }
  return Parser(text).parse();
}

}  // namespace kve
