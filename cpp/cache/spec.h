// cache/: what to remember. A cache spec names the choices; kv_cache.h keeps the pages.
//
// spec  = stage {"+" stage}      stage = ["k=" | "v="] name [":" key=value {"," key=value}]
// Blanks around names and signs are ignored. The name tells the kind of a stage: a selector (which
// tokens stay in the cache), a codec (how many bits), a projector (in which basis), or a preset
// (a name for a whole spec). A stage without k= or v= is for both sides; a side without a projector
// is stored as it is, one without a codec in f16. "snapkv:keep=0.25 + int4:tail=64",
// "int4:group=32,tail=64", "k=q8_0 + v=q4_0", "hadamard + lm4:scale=log8", "kivi2".
//
// Every stage may be limited to some layers by first=2 (the first two), last=2 and layers=4-7; on
// the sides that it is for, those layers then have nothing of what the other stages say: "best3 +
// best8:first=2,last=1 + k=f16:layers=5". heads=0 or heads=0-2 limits a stage to some kv heads, of
// those layers or of all; heads of one layer may differ in how they are coded, not in when:
// "int3 + int4:heads=2".
//
// older=1024 makes a codec one for old pages: those whose rows are all more than so many tokens
// behind the newest are coded anew, page by page, when tokens are committed. Nothing else of a side
// changes with age: "best4 + best2:older=2048", "int8 + int4:older=1024 + int2:older=4096". Under a
// limit of memory (KvCache::limit_memory) the oldest pages go down before they must, those first
// that are the oldest against the age at which they would.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cache/select/selector_spec.h"
#include "formats/cache_codecs.h"

namespace kve {

inline constexpr int kMaxTail = 1'000'000;
inline constexpr int kMaxSinks = kPageTokens - 1;
inline constexpr size_t kMaxSpecLength = 1 << 16;
inline constexpr int kMaxSpecLayers = 1024;
inline constexpr int kMaxSpecHeads = 1024;
inline constexpr int kMaxOutliers = 10;  // per cent
inline constexpr size_t kMaxTiers = 4;   // codecs of a side, by age
inline constexpr int kMaxMpoBlock = 256;
inline constexpr size_t kMaxMpoSizes = 3;
inline constexpr size_t kMaxBasesPath = 4096;
inline constexpr int kMaxThinkWindow = 4096;

// What a row is, of which a few coefficients are kept beside codes in its own channels.
enum class Residual : uint8_t {
  none,    // codes are of the coefficients, and there is nothing beside
  coded,   // codes are of what the coefficients leave of a row
  fitted,  // coefficients are of what the codes leave of a row, to which their basis is fitted
};

// In which basis rows are written.
struct ProjectorSpec {
  enum class Kind : uint8_t { none, hadamard, rotation, mpo, lowrank, klt, think };
  Kind kind = Kind::none;
  int block = 0;  // mpo: values that share a factor
  // mpo: sizes of the tensors behind the first, which is coded, where these are several: `block` is
  // their product. Zeros behind the last.
  std::array<int, kMaxMpoSizes> sizes{};
  // mpo: how many values tie a tensor to those before it; 0: as many as there are.
  std::array<int, kMaxMpoSizes> bonds{};
  int segment = 0;  // mpo, lowrank: tokens that share a basis, which is fitted to them
  int rank = 0;     // lowrank: coefficients per row of a head, or of a calibrated group of heads
  // lowrank of segments: codes and coefficients together are the row.
  Residual residual = Residual::none;
  bool coefficients8 = false;  // then: in 8 bits, not in binary16
  int fit = 0;                 // klt: the first tokens, to which the basis is fitted
  int anchor = 0;              // klt, calibrated lowrank: as BasisView::anchor
  uint64_t seed = 0;           // rotation
  // lowrank, klt: bases are those of CacheSpec::bases. Instead of by a rank, coefficients of
  // lowrank are chosen by their share of the values of a group, in steps of 32, or of its energy,
  // both in percent.
  bool calibrated = false;
  int share = 0;
  int energy = 0;
  // think: thousandths of the channels of a head that are left out, and how many of the newest
  // tokens judge channels by their queries and keep all channels of their keys.
  int pruned = 0;
  int window = 0;

  // mpo: coefficients of a block.
  int bond() const { return bonds[0] > 0 ? bonds[0] : block; }
  // Whether one basis serves all rows, and is known before any of them.
  bool is_fixed() const { return kind <= Kind::rotation || calibrated; }
  // think: channels of `dim` that are left out; never all of them.
  int pruned_of(int dim) const { return static_cast<int>(int64_t{dim} * pruned / 1000); }
  bool operator==(const ProjectorSpec&) const = default;
};

// When rows leave the tail.
enum class Seal : uint8_t {
  page,    // whole pages, once there are so many rows besides the tail
  window,  // all of the tail, once it has `tail` rows (KIVI's keys)
  row,     // each row once there are more than `tail` (KIVI's values)
};

// How pages are coded whose rows are all more than `age` tokens behind the newest.
struct TierSpec {
  int age = 0;
  CodecSpec codec;

  bool operator==(const TierSpec&) const = default;
};

// One side (keys or values).
struct SideSpec {
  ProjectorSpec projector;
  CodecSpec codec;
  int tail = 0;  // newest tokens kept in f16
  Seal seal = Seal::page;
  std::vector<TierSpec> older;  // by rising age and falling bits

  // Rows are coded as they arrive: a chunk attends to its own coded rows.
  bool eager() const;
  // Rows that are sealed together, at least.
  int unit() const;
  int n_tiers() const { return 1 + static_cast<int>(older.size()); }
  const CodecSpec& codec_of(int tier) const {
    return tier == 0 ? codec : older[static_cast<size_t>(tier - 1)].codec;
  }
  // Whether rows of both leave their tails together, to bases of one kind.
  bool seals_with(const SideSpec& other) const;
  // The stages, with the parameters that matter: "f16", "int4:group=32,tail=64".
  std::string str() const;
  bool operator==(const SideSpec&) const = default;
};

// Some layers of a model: all that one of the conditions is true for.
struct LayerChoice {
  int first = 0;  // the first so many
  int last = 0;   // the last so many
  int begin = 0;  // those from begin on and before end
  int end = 0;

  bool empty() const { return first == 0 && last == 0 && begin == end; }
  bool has(int layer, int n_layers) const {
    return layer < first || layer >= n_layers - last || (layer >= begin && layer < end);
  }
  bool operator==(const LayerChoice&) const = default;
};

// Some kv heads: those from begin on and before end.
struct HeadChoice {
  int begin = 0;
  int end = 0;

  bool empty() const { return begin == end; }
  bool operator==(const HeadChoice&) const = default;
};

// What some layers, or some heads of them, have instead of what all have.
struct LayerRule {
  LayerChoice layers;  // empty: all, of which `heads` chooses some
  HeadChoice heads;    // empty: all
  std::optional<SideSpec> k;
  std::optional<SideSpec> v;

  bool has(int layer, int n_layers) const { return layers.empty() || layers.has(layer, n_layers); }
  bool has(int layer, int n_layers, int head) const {
    return has(layer, n_layers) && (heads.empty() || (head >= heads.begin && head < heads.end));
  }
  bool operator==(const LayerRule&) const = default;
};

struct CacheSpec {
  SideSpec k;
  SideSpec v;
  std::vector<LayerRule> rules;  // of two for the same head, the later one holds
  int sinks = 0;                 // first tokens kept in f16
  bool exact_prefill = false;    // nothing is sealed before the whole prompt was read
  SelectorSpec selector = {};    // which tokens stay
  std::string bases;             // file that calibrated projectors read; empty: there are none

  // Throws ConfigError: what was not understood, where, and what is known.
  static CacheSpec parse(std::string_view text);
  // The keys or the values of one kv head of one layer.
  const SideSpec& side(int layer, int n_layers, int head, bool values) const;
  // What does not go together or is out of its range, as a part of a sentence; empty for all that
  // parse() returns. The functions of an invalid spec must not be called.
  std::string error() const;
  // Whether channels of some keys go by what a whole prompt says about them (think).
  bool prunes_channels() const;
  // Canonical; parse(str()) == *this.
  std::string str() const;
  bool operator==(const CacheSpec&) const = default;
};

// A line of `kvengine caches`.
struct CacheListing {
  std::string name;
  std::string kind;         // "codec", "projector", "selector", "preset"
  std::string spec;         // canonical spec the name stands for
  std::string description;  // one line
  std::string parameters;   // defaults and what is allowed: "tail=0 (0..1000000)"
  std::string paper;        // arXiv id, or where the format comes from
  double bits_per_value;    // of coded rows of head_dim 128, scales included, bases not
};
std::vector<CacheListing> list_caches();

}  // namespace kve
