// The names a cache spec may use.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "cache/spec.h"

namespace kve {

// A codec as a spec names it: a way of coding with its defaults.
struct CodecEntry {
  std::string_view name;
  CodecSpec spec;
  int default_tail;
  bool is_free;                  // whether group, per, fit, scale and channels may be chosen
  std::string_view description;  // one line
  std::string_view paper;        // arXiv id, or where the format comes from
};
std::span<const CodecEntry> cache_codecs();
const CodecEntry* find_codec(std::string_view name);  // null when unknown
// The entry of a codec that a valid spec holds; the first is null for others.
const CodecEntry* find_entry(const CodecSpec& codec);
const CodecEntry& entry_of(const CodecSpec& codec);

struct ProjectorEntry {
  std::string_view name;
  ProjectorSpec spec;            // defaults
  std::string_view parameters;   // "block=16 (2..256), segment=1024 (64..65536)"
  std::string_view description;  // one line
  std::string_view paper;
};
std::span<const ProjectorEntry> cache_projectors();
const ProjectorEntry* find_projector(std::string_view name);  // null when unknown
const ProjectorEntry& entry_of(ProjectorSpec::Kind kind);     // not none

// klt with the bases of a file: all that may be chosen is fixed.
constexpr ProjectorSpec calibrated_klt() {
  return {.kind = ProjectorSpec::Kind::klt, .anchor = kPageTokens, .calibrated = true};
}

// Values of a block that the tensors of an mpo from number i on (0: the first behind the coded one)
// hold together.
constexpr int mpo_rest(const ProjectorSpec& projector, size_t i) {
  if (projector.sizes[0] == 0) return projector.block;
  int64_t rest = 1;
  for (; i < kMaxMpoSizes && projector.sizes[i] > 0; ++i) {
    rest = rest * projector.sizes[i] > kMaxMpoBlock ? kMaxMpoBlock + 1 : rest * projector.sizes[i];
  }
  return static_cast<int>(rest);
}

// A name for a whole spec.
struct CachePreset {
  std::string_view name;
  std::string_view spec;         // without presets
  std::string_view description;  // one line
  std::string_view paper;        // arXiv id
};
std::span<const CachePreset> cache_presets();
const CachePreset* find_preset(std::string_view name);  // null when unknown

// "f32, f16, ...": every name, for messages.
std::string known_cache_names();
// The known name closest to a misspelled one; empty when none is close.
std::string_view nearest_cache_name(std::string_view name);

// The values `group=` may have beside "head" and "row".
inline constexpr int kCacheGroups[] = {8, 16, 32, 64, 128};

}  // namespace kve
