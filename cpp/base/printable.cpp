#include "base/printable.h"

#include <cstdint>

namespace kve {
namespace {

// Bytes of the well-formed multi-byte UTF-8 sequence at the start of `text`, 0 if there is none;
// `code` receives the code point.
size_t utf8_sequence(std::string_view text, uint32_t& code) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const uint32_t lead = byte(0);
  const size_t length = lead >= 0xf5   ? 0
                        : lead >= 0xf0 ? 4
                        : lead >= 0xe0 ? 3
                        : lead >= 0xc2 ? 2
                                       : 0;
  if (length == 0 || length > text.size()) return 0;
  code = lead & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0u) != 0x80u) return 0;
    code = (code << 6) | (byte(i) & 0x3fu);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  return overlong || surrogate || code > 0x10ffff ? 0 : length;
}

// Invisible characters that would break or reorder the line they are printed on.
bool disturbs_line(uint32_t code) {
  return code < 0xa0 || (code >= 0x200b && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) ||
         (code >= 0x2060 && code <= 0x206f) || code == 0xfeff;
}

void append_escaped(std::string& out, char c) {
  constexpr char kHex[] = "0123456789abcdef";
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

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  size_t i = 0;
  while (i < text.size() && i < max_bytes) {
    uint32_t code = 0;
    const size_t length = utf8_sequence(text.substr(i), code);
    if (length > 0 && !disturbs_line(code)) {
      out += text.substr(i, length);
      i += length;
    } else {
      append_escaped(out, text[i++]);
    }
  }
  if (i < text.size()) out += "...";
  return out;
}

}  // namespace kve
