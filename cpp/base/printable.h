// Text from files and prompts, made safe for a one-line error message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kve {

// `text` with control characters, quotes, backslashes and bytes above 126 written as escapes
// (\n, \x1b), cut after `max_bytes` source bytes with "..." appended. The result is ASCII.
inline std::string printable(std::string_view text, size_t max_bytes = 80) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const char c : text.substr(0, max_bytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\\' || c == '\'') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte > 0x7e) {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  if (text.size() > max_bytes) out += "...";
  return out;
}

// printable(text) between single quotes.
inline std::string quoted(std::string_view text, size_t max_bytes = 80) {
  return "'" + printable(text, max_bytes) + "'";
}

}  // namespace kve
