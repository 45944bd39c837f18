#include "cache/registry.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "cache/select/selector_stage.h"

namespace kve {
namespace {

constexpr int kTail = 64;

constexpr CodecSpec coded(Coding coding, int bits, int group, Fit fit = Fit::range) {
  return {.id = CodecId::coded,
          .coding = {coding, static_cast<uint8_t>(bits), fit, ScaleFormat::half},
          .group = group};
}

constexpr CodecEntry floats(std::string_view name, CodecId id, std::string_view description,
                            std::string_view origin) {
  CodecSpec spec;  // with the defaults of all fields
  spec.id = id;
  return {name, spec, 0, false, description, origin};
}

constexpr CodecEntry ggml(std::string_view name, Coding coding, int bits,
                          std::string_view description) {
  return {name, coded(coding, bits, 32), 0, false, description, "ggml"};
}

constexpr CodecEntry asym(std::string_view name, int bits, std::string_view description) {
  return {name, coded(Coding::asym, bits, 32), kTail, true, description, "2303.06865"};
}

constexpr CodecEntry sym(std::string_view name, int bits, std::string_view description) {
  return {name, coded(Coding::sym, bits, 32), kTail, true, description, "2405.12591"};
}

constexpr CodecEntry lloyd(std::string_view name, int bits, std::string_view description) {
  return {name,        coded(Coding::lloyd, bits, kWholeHead, Fit::norm), kTail, true, description,
          "2504.19874"};
}

constexpr std::array kCodecs = {
    floats("f32", CodecId::f32, "32-bit floats", "IEEE 754"),
    floats("f16", CodecId::f16, "16-bit floats", "IEEE 754"),
    floats("bf16", CodecId::bf16, "16-bit floats with 8 bits of exponent", "bfloat16"),
    ggml("q8_0", Coding::q8_0, 8, "ggml blocks: 8-bit codes, a scale per 32 channels"),
    ggml("q5_1", Coding::q5_1, 5, "ggml blocks: 5-bit codes, scale and minimum per 32 channels"),
    ggml("q5_0", Coding::q5_0, 5, "ggml blocks: 5-bit codes, a scale per 32 channels"),
    ggml("q4_1", Coding::q4_1, 4, "ggml blocks: 4-bit codes, scale and minimum per 32 channels"),
    ggml("q4_0", Coding::q4_0, 4, "ggml blocks: 4-bit codes, a scale per 32 channels"),
    ggml("iq4_nl", Coding::iq4_nl, 4, "ggml blocks: 16 uneven levels, a scale per 32 channels"),
    asym("int8", 8, "8-bit codes, scale and minimum per group"),
    asym("int7", 7, "7-bit codes, scale and minimum per group"),
    asym("int6", 6, "6-bit codes, scale and minimum per group"),
    asym("int5", 5, "5-bit codes, scale and minimum per group"),
    asym("int4", 4, "4-bit codes, scale and minimum per group"),
    asym("int3", 3, "3-bit codes, scale and minimum per group"),
    asym("int2", 2, "2-bit codes, scale and minimum per group"),
    asym("int1", 1, "1-bit codes, scale and minimum per group"),
    sym("sym8", 8, "8-bit signed codes, a scale per group"),
    sym("sym6", 6, "6-bit signed codes, a scale per group"),
    sym("sym4", 4, "4-bit signed codes, a scale per group"),
    sym("sym3", 3, "3-bit signed codes, a scale per group"),
    sym("sym2", 2, "ternary codes, a scale per group"),
    lloyd("lm4", 4, "16 Lloyd-Max levels of a Gaussian, a scale per group"),
    lloyd("lm3", 3, "8 Lloyd-Max levels of a Gaussian, a scale per group"),
    lloyd("lm2", 2, "4 Lloyd-Max levels of a Gaussian, a scale per group"),
    lloyd("lm1", 1, "signs, a scale per group"),
    CodecEntry{"nf4", coded(Coding::nf4, 4, 64), kTail, true,
               "16 levels with equal shares of a Gaussian, a scale per group", "2305.14314"},
    CodecEntry{"e4m3", coded(Coding::e4m3, 8, kWholeHead), 0, true,
               "8-bit floats with 4 bits of exponent, a scale per group", "2209.05433"},
    CodecEntry{"e5m2", coded(Coding::e5m2, 8, kWholeHead), 0, true,
               "8-bit floats with 5 bits of exponent, a scale per group", "2209.05433"},
};

constexpr std::array kProjectors = {
    ProjectorEntry{"hadamard",
                   {.kind = ProjectorSpec::Kind::hadamard},
                   "",
                   "Walsh-Hadamard rotation of every head (blocks where head_dim is no power of 2)",
                   "2404.00456"},
    ProjectorEntry{"rotation",
                   {.kind = ProjectorSpec::Kind::rotation, .seed = 1},
                   "seed=1",
                   "random rotation of every head",
                   "2504.19874"},
    ProjectorEntry{
        "mpo",
        {.kind = ProjectorSpec::Kind::mpo, .block = 16, .segment = 1024},
        "block=16 (2..256; or up to 3 sizes of tensors, 4x4), bonds (before each of these, 12x3; "
        "all "
        "of them), segment=1024 (64..65536, a multiple of 64; shorter at the end of a prompt with "
        "prefill=exact)",
        "matrix product operator of two tensors (DecoQuant) or more; the small ones are a basis of "
        "blocks of channels, fitted to a segment of tokens, all heads together",
        "2405.12591"},
    ProjectorEntry{
        "lowrank",
        {.kind = ProjectorSpec::Kind::lowrank, .segment = 1024, .rank = 32},
        "rank=32, segment=1024 (64..65536, a multiple of 64), residual=none (none, coded: the "
        "codec "
        "codes what the coefficients leave of a row, fitted: coefficients are of what the codes "
        "leave, as GEAR's, 2403.05527), coefficients=f16 (f16, int8; with a residual); or "
        "basis=FILE (of `kvengine "
        "calibrate --bases`) and rank, share=50 (percent of the values) or energy "
        "(percent)",
        "singular vectors of a segment of tokens, per head; or calibrated components of "
        "keys before the rotary embedding and of values, per group of heads",
        "2410.21465"},
    ProjectorEntry{
        "klt",
        {.kind = ProjectorSpec::Kind::klt, .fit = 512, .anchor = kPageTokens},
        "fit=512 (64..65536, a multiple of 64), anchor=64 (0, 1 or 64); or for keys basis=FILE (of "
        "`kvengine calibrate --bases`)",
        "Karhunen-Loeve transform of keys, turned back to the start of their page, in the "
        "metric of the queries, with bits by reverse water-filling",
        "kvengine"},
    ProjectorEntry{
        "think",
        {.kind = ProjectorSpec::Kind::think, .pruned = 500, .window = 32},
        "ratio=0.5 (above 0 and below 1, the share of channels that go), window=32 (1..4096, the "
        "newest tokens, whose queries judge channels and whose keys keep all)",
        "ThinK, for keys: at the end of a prompt channels of each kv head go that its keys and the "
        "newest queries use least; a codec without group= then has one per head",
        "2407.21018"},
};

constexpr std::array kPresets = {
    CachePreset{"flexgen4", "int4:group=32,tail=0",
                "FlexGen's 4-bit cache as long-context benchmarks run it: groups of 32 channels of "
                "one token, coded on arrival",
                "2303.06865"},
    CachePreset{"rtn8", "sym8:group=row,tail=0", "8-bit rounding to nearest, one scale per token",
                "2405.12591"},
    CachePreset{"rtn4", "sym4:group=row,tail=0", "4-bit rounding to nearest, one scale per token",
                "2405.12591"},
    CachePreset{"kivi4",
                "k=int4:per=channel,group=32,tail=128,seal=window,prefill=exact"
                "+v=int4:group=32,tail=128,seal=row",
                "KIVI at 4 bits: keys by channel, values by token, the newest 128 in f16",
                "2402.02750"},
    CachePreset{"kivi2",
                "k=int2:per=channel,group=32,tail=128,seal=window,prefill=exact"
                "+v=int2:group=32,tail=128,seal=row",
                "KIVI at 2 bits: keys by channel, values by token, the newest 128 in f16",
                "2402.02750"},
    CachePreset{"decoquant8", "mpo:block=16,segment=1024+sym8:group=row,tail=0,prefill=exact",
                "DecoQuant at 8 bits, segments of 1,024 tokens", "2405.12591"},
    CachePreset{"decoquant4", "mpo:block=16,segment=1024+sym4:group=row,tail=0,prefill=exact",
                "DecoQuant at 4 bits, segments of 1,024 tokens", "2405.12591"},
    CachePreset{"decoquant3", "mpo:block=16,segment=1024+sym3:group=row,tail=0,prefill=exact",
                "DecoQuant's construction at 3 bits, which the paper does not report",
                "2405.12591"},
    CachePreset{"decoquant2", "mpo:block=16,segment=1024+sym2:group=row,tail=0,prefill=exact",
                "DecoQuant at 2 bits (ternary), segments of 1,024 tokens", "2405.12591"},
    CachePreset{"turbo4", "rotation:seed=1+lm4:tail=0",
                "TurboQuant (mse) at 4 bits: random rotation, Lloyd-Max levels, a norm per vector",
                "2504.19874"},
    CachePreset{"turbo3", "rotation:seed=1+lm3:tail=0",
                "TurboQuant (mse) at 3 bits: random rotation, Lloyd-Max levels, a norm per vector",
                "2504.19874"},
    CachePreset{"turbo2", "rotation:seed=1+lm2:tail=0",
                "TurboQuant (mse) at 2 bits: random rotation, Lloyd-Max levels, a norm per vector",
                "2504.19874"},
    CachePreset{"kvarn4",
                "hadamard+k=int4:per=channel,group=64,channels=scaled,tail=0,sinks=4"
                "+v=int4:group=head,channels=scaled,tail=0",
                "KVarN at 4 bits: tiles of 64 tokens evened out, keys by channel, values by token",
                "2606.03458"},
    CachePreset{"kvarn3",
                "hadamard+k=int3:per=channel,group=64,channels=scaled,tail=0,sinks=4"
                "+v=int3:group=head,channels=scaled,tail=0",
                "KVarN at 3 bits: tiles of 64 tokens evened out, keys by channel, values by token",
                "2606.03458"},
    CachePreset{"kvarn2",
                "hadamard+k=int2:per=channel,group=64,channels=scaled,tail=0,sinks=4"
                "+v=int2:group=head,channels=scaled,tail=0",
                "KVarN at 2 bits: tiles of 64 tokens evened out, keys by channel, values by token",
                "2606.03458"},
    CachePreset{
        "palu", "lowrank:basis=FILE,share=50",
        "Palu with groups of heads and uniform ranks: half as many numbers per token, in f16",
        "2407.21118"},
    CachePreset{"klt4",
                "k=klt:basis=FILE+k=int4:per=channel,group=64,fit=search,scale=log8,tail=60,sinks=4"
                "+v=hadamard+v=lm4:group=head,fit=energy,scale=log8,tail=60",
                "best4 with bases of a file: nothing waits for a fit", "kvengine"},
    CachePreset{"klt3",
                "k=klt:basis=FILE+k=int3:per=channel,group=64,fit=search,scale=log8,tail=60,sinks=4"
                "+v=hadamard+v=lm3:group=head,fit=energy,scale=log8,tail=60",
                "best3 with bases of a file: nothing waits for a fit", "kvengine"},
    CachePreset{"klt2",
                "k=klt:basis=FILE+k=int2:per=channel,group=64,fit=search,scale=log8,tail=60,sinks=4"
                "+v=hadamard+v=lm2:group=head,fit=energy,scale=log8,tail=60",
                "best2 with bases of a file: nothing waits for a fit", "kvengine"},
    CachePreset{"best8", "hadamard+q8_0:tail=32,sinks=4", "recommended at 8 bits", "kvengine"},
    CachePreset{"best4",
                "k=klt:fit=512,anchor=64+k=int4:per=channel,group=64,fit=search,scale=log8,tail=60,"
                "sinks=4+v=hadamard+v=lm4:group=head,fit=energy,scale=log8,tail=60",
                "recommended at 4 bits", "kvengine"},
    CachePreset{"best3",
                "k=klt:fit=512,anchor=64+k=int3:per=channel,group=64,fit=search,scale=log8,tail=60,"
                "sinks=4+v=hadamard+v=lm3:group=head,fit=energy,scale=log8,tail=60",
                "recommended at 3 bits", "kvengine"},
    CachePreset{"best2",
                "k=klt:fit=512,anchor=64+k=int2:per=channel,group=64,fit=search,scale=log8,tail=60,"
                "sinks=4+v=hadamard+v=lm2:group=head,fit=energy,scale=log8,tail=60",
                "recommended at 2 bits", "kvengine"},
    CachePreset{"best42",
                "k=klt:fit=512,anchor=64+k=int4:per=channel,group=64,fit=search,scale=log8,tail=60,"
                "sinks=4+k=int2:per=channel,group=64,fit=search,scale=log8,older=1024+v=hadamard"
                "+v=lm4:group=head,fit=energy,scale=log8,tail=60"
                "+v=lm2:group=head,fit=energy,scale=log8,older=1024",
                "best4 that codes pages as best2 once they are 1,024 tokens behind", "kvengine"},
};

std::vector<std::string_view> all_names() {
  std::vector<std::string_view> names;
  for (const CodecEntry& entry : kCodecs) names.push_back(entry.name);
  for (const ProjectorEntry& entry : kProjectors) names.push_back(entry.name);
  for (const SelectorEntry& entry : cache_selectors()) names.push_back(entry.name);
  for (const CachePreset& preset : kPresets) names.push_back(preset.name);
  return names;
}

template <class Entries>
auto find_in(const Entries& entries, std::string_view name) {
  const auto at = std::ranges::find(entries, name, [](const auto& entry) { return entry.name; });
  return at == std::end(entries) ? nullptr : &*at;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// Levenshtein distance, ignoring the case of ASCII letters.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (lower(a[i]) == lower(b[j]) ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

std::string codec_parameters(const CodecEntry& entry) {
  if (entry.spec.is_float()) return "";
  std::string out;
  if (entry.is_free) {
    const std::string group =
        entry.spec.group == kWholeHead ? "head" : std::to_string(entry.spec.group);
    const bool lloyd = entry.spec.coding.coding == Coding::lloyd;
    out = "group=" + group + " (8, 16, 32, 64, 128, head, row), per=token (token, channel), ";
    if (lloyd) out += "fit=norm (norm, energy, least), ";
    if (entry.spec.coding.coding == Coding::asym) out += "fit=range (range, search), ";
    out +=
        "scale=half (half, log8), channels=plain (plain, centred, scaled), "
        "outliers=0% (0%..10%), ";
  }
  return out + "tail=" + std::to_string(entry.default_tail) +
         " (0..1000000), seal=page (page, window, row), sinks=0 (0..63), prefill=coded (coded, "
         "exact)" +
         ", older=N (1..1000000, instead of these: a codec for pages so many tokens behind)";
}

double listed_bits(const CacheSpec& spec) {
  constexpr int kHeadDim = 128;  // of a model with 8 kv heads
  constexpr int kRow = 8 * kHeadDim;
  const auto bits = [&](const SideSpec& side, bool values) {
    const int share = side.projector.share > 0 ? side.projector.share : 100;
    const double left = (1000 - side.projector.pruned) / 1000.0;
    return bits_per_value(side.codec, kHeadDim, kRow, values) * share / 100 * left;
  };
  return (bits(spec.k, false) + bits(spec.v, true)) / 2;
}

// `text`: a spec that has the name's defaults.
CacheListing listing(std::string_view name, std::string_view text, std::string_view kind,
                     std::string_view description, std::string parameters, std::string_view paper) {
  const CacheSpec spec = CacheSpec::parse(text);
  return {.name = std::string(name),
          .kind = std::string(kind),
          .spec = spec.str(),
          .description = std::string(description),
          .parameters = std::move(parameters),
          .paper = std::string(paper),
          .bits_per_value = listed_bits(spec)};
}

}  // namespace

std::span<const CodecEntry> cache_codecs() { return kCodecs; }
const CodecEntry* find_codec(std::string_view name) { return find_in(kCodecs, name); }

const CodecEntry* find_entry(const CodecSpec& codec) {
  for (const CodecEntry& entry : kCodecs) {
    const GroupCoding& coding = entry.spec.coding;
    const bool same = coding.coding == codec.coding.coding && coding.bits == codec.coding.bits;
    if (entry.spec.id == codec.id && (codec.is_float() || same)) return &entry;
  }
  return nullptr;
}

const CodecEntry& entry_of(const CodecSpec& codec) {
  const CodecEntry* entry = find_entry(codec);
  KVE_ASSERT(entry != nullptr);
  return *entry;
}

std::span<const ProjectorEntry> cache_projectors() { return kProjectors; }
const ProjectorEntry* find_projector(std::string_view name) { return find_in(kProjectors, name); }

const ProjectorEntry& entry_of(ProjectorSpec::Kind kind) {
  const auto at = std::ranges::find(kProjectors, kind,
                                    [](const ProjectorEntry& entry) { return entry.spec.kind; });
  KVE_ASSERT(at != kProjectors.end());
  return *at;
}

std::span<const CachePreset> cache_presets() { return kPresets; }
const CachePreset* find_preset(std::string_view name) { return find_in(kPresets, name); }

std::string known_cache_names() {
  std::string out;
  for (const std::string_view name : all_names()) {
    if (!out.empty()) out += ", ";
    out += name;
  }
  return out;
}

std::string_view nearest_cache_name(std::string_view name) {
  constexpr size_t kFarthest = 2;
  std::string_view nearest;
  if (name.size() > 32) return nearest;
  size_t least = kFarthest + 1;
  for (const std::string_view known : all_names()) {
    const size_t distance = edit_distance(name, known);
    // A short word that shares hardly a letter with the name is no misspelling of it.
    if (distance < least && 2 * distance <= known.size()) {
      least = distance;
      nearest = known;
    }
  }
  return nearest;
}

std::vector<CacheListing> list_caches() {
  std::vector<CacheListing> out;
  for (const CodecEntry& entry : kCodecs) {
    out.push_back(listing(entry.name, entry.name, "codec", entry.description,
                          codec_parameters(entry), entry.paper));
  }
  for (const ProjectorEntry& entry : kProjectors) {
    out.push_back(listing(entry.name, entry.name, "projector", entry.description,
                          std::string(entry.parameters), entry.paper));
  }
  for (const SelectorEntry& entry : cache_selectors()) {
    out.push_back(listing(entry.name, selector_text(entry.spec), "selector", entry.description,
                          selector_parameters(entry), entry.paper));
  }
  for (const CachePreset& preset : kPresets) {
    const bool reads_file = !CacheSpec::parse(preset.spec).bases.empty();
    out.push_back(listing(preset.name, preset.spec, "preset", preset.description,
                          reads_file ? "basis=FILE (of `kvengine calibrate --bases`)" : "",
                          preset.paper));
  }
  return out;
}

}  // namespace kve
