// Text from files and prompts, made safe for a one-line error message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kve {

// `text` as well-formed UTF-8 on one line: control, line-separating and direction-changing
// characters, quotes, backslashes and bytes that are not UTF-8 become escapes (\n, \x1b). Cut after
// about `max_bytes` source bytes, with "..." appended.
std::string printable(std::string_view text, size_t max_bytes = 80);

// quoted(text, max_bytes = 80): printable(text) between single quotes. An object, not a function,
// so that argument-dependent lookup cannot find std::quoted for a std::string instead.
struct Quoted {
  std::string operator()(std::string_view text, size_t max_bytes = 80) const {
    std::string result = printable(text, max_bytes);
    result.insert(result.begin(), '\'');
    result.push_back('\'');
    return result;
  }
};
inline constexpr Quoted quoted;

}  // namespace kve
