// The names a cache spec may use, beside those of the codecs.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kve {

// A name for a whole spec.
struct CachePreset {
  std::string_view name;
  std::string_view spec;         // of both sides, without presets
  std::string_view description;  // one line
  std::string_view paper;        // arXiv id
};
std::span<const CachePreset> cache_presets();
const CachePreset* find_preset(std::string_view name);  // null when unknown

// "f32, f16, ...": every codec and preset, for messages.
std::string known_cache_names();
// The known name closest to a misspelled one; empty when none is close.
std::string_view nearest_cache_name(std::string_view name);

}  // namespace kve
