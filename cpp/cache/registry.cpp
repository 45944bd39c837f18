#include "cache/registry.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "cache/spec.h"

namespace kve {
namespace {

constexpr std::array kPresets = {
    CachePreset{"flexgen4", "int4:group=32,tail=0",
                "FlexGen's 4-bit cache as long-context benchmarks run it: groups of 32 channels of "
                "one token, coded on arrival",
                "2303.06865"},
};

std::vector<std::string_view> all_names() {
  std::vector<std::string_view> names;
  for (const CacheCodec& entry : cache_codecs()) names.push_back(entry.name);
  for (const CachePreset& preset : kPresets) names.push_back(preset.name);
  return names;
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

std::string codec_parameters(const CacheCodec& entry) {
  std::string out;
  if (entry.group_is_free) {
    out = "group=" + std::to_string(entry.default_group) + " (8, 16, 32, 64, 128), ";
  }
  if (!entry.is_float()) out += "tail=" + std::to_string(entry.default_tail) + " (0..1000000)";
  return out;
}

CacheListing listing(std::string_view name, std::string_view kind, std::string_view description,
                     std::string parameters, std::string_view paper) {
  const CacheSpec spec = CacheSpec::parse(name);
  return {.name = std::string(name),
          .kind = std::string(kind),
          .spec = spec.str(),
          .description = std::string(description),
          .parameters = std::move(parameters),
          .paper = std::string(paper),
          .bits_per_value = (bits_per_value(spec.k.codec) + bits_per_value(spec.v.codec)) / 2};
}

}  // namespace

std::span<const CachePreset> cache_presets() { return kPresets; }

const CachePreset* find_preset(std::string_view name) {
  for (const CachePreset& preset : kPresets) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

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
  for (const CacheCodec& entry : cache_codecs()) {
    out.push_back(
        listing(entry.name, "codec", entry.description, codec_parameters(entry), entry.paper));
  }
  for (const CachePreset& preset : kPresets) {
    out.push_back(listing(preset.name, "preset", preset.description, "", preset.paper));
  }
  return out;
}

}  // namespace kve
