// Writes the few JSON documents that the programs print.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "kvengine.h"

namespace tools {

// An object built key by key: JsonObject().add("a", 1).add("b", "text").str()
class JsonObject {
 public:
  JsonObject& add(std::string_view key, std::string_view text);
  JsonObject& add(std::string_view key, const char* text) {
    return add(key, std::string_view(text));
  }
  JsonObject& add(std::string_view key, int64_t number);
  JsonObject& add(std::string_view key, int number) { return add(key, int64_t{number}); }
  JsonObject& add(std::string_view key, double number);
  // `json` is a document itself.
  JsonObject& add_raw(std::string_view key, std::string_view json);
  std::string str() const { return text_ + "}"; }

 private:
  std::string text_ = "{";
};

// "[1, 2.5]"
std::string json_array(std::span<const double> numbers);
std::string json_array(std::span<const kve::Token> tokens);
// The `cache` object of every document.
std::string json_cache(const kve::CacheStats& stats);

}  // namespace tools
