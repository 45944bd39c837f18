#include "common/json.h"

#include <charconv>
#include <cmath>

namespace tools {
namespace {

std::string quoted(std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20) {
      out += {'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string number_text(double number) {
  if (!std::isfinite(number)) return "null";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), number).ptr;
  return {buffer, end};
}

template <class T, class Format>
std::string array_of(std::span<const T> values, Format format) {
  std::string out = "[";
  for (const T& value : values) {
    if (out.size() > 1) out += ", ";
    out += format(value);
  }
  return out + "]";
}

}  // namespace

JsonObject& JsonObject::add_raw(std::string_view key, std::string_view json) {
  if (text_.size() > 1) text_ += ", ";
  text_ += quoted(key);
  text_ += ": ";
  text_ += json;
  return *this;
}
JsonObject& JsonObject::add(std::string_view key, std::string_view text) {
  return add_raw(key, quoted(text));
}
JsonObject& JsonObject::add(std::string_view key, int64_t number) {
  return add_raw(key, std::to_string(number));
}
JsonObject& JsonObject::add(std::string_view key, double number) {
  return add_raw(key, number_text(number));
}

std::string json_array(std::span<const double> numbers) { return array_of(numbers, number_text); }
std::string json_array(std::span<const kve::Token> tokens) {
  return array_of(tokens, [](kve::Token token) { return std::to_string(token); });
}

std::string json_cache(const kve::CacheStats& stats) {
  return JsonObject()
      .add("spec", stats.spec)
      .add("bytes", stats.bytes)
      .add("f16_bytes", stats.f16_bytes)
      .add("peak_bytes", stats.peak_bytes)
      .add("bits_per_value", stats.bits_per_value)
      .add("tokens_seen", stats.tokens_seen)
      .add("tokens_kept", stats.tokens_kept)
      .add("path", stats.path)
      .add("codes", stats.codes)
      .add("scales", stats.scales)
      .add("bases", stats.bases)
      .add("tail", stats.tail)
      .add("meta", stats.meta)
      .add("offloaded", stats.offloaded)
      .add("on_device", stats.on_device)
      .add("spilled", stats.spilled)
      .str();
}

}  // namespace tools
