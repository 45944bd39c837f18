#include "text/charsmap.h"

#include <cstring>

#include "base/error.h"
#include "text/unicode.h"

namespace kve {
namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

uint32_t read_u32(std::string_view bytes) {
  uint32_t out = 0;
  for (size_t i = 4; i-- > 0;) out = out << 8 | static_cast<uint8_t>(bytes[i]);
  return out;
}

[[noreturn]] void fail(std::string_view what) {
  throw FormatError(message("tokenizer.ggml.precompiled_charsmap: ", what));
}

}  // namespace

Charsmap::Charsmap(std::string_view blob) {
  if (blob.empty()) return;
  const size_t trie_bytes = blob.size() < 4 ? 0 : read_u32(blob);
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > blob.size() - 4) {
    fail(message("expected the size of a trie within ", blob.size(), " bytes, found ", trie_bytes));
  }
  units_.resize(trie_bytes / 4);
  for (size_t i = 0; i < units_.size(); ++i) units_[i] = read_u32(blob.substr(4 + i * 4));
  replacements_ = blob.substr(4 + trie_bytes);
  check();
}

// Walks every path once, so that normalize() needs no checks but those of the trie itself.
void Charsmap::check() const {
  if (!replacements_.empty() && replacements_.back() != '\0') {
    fail("expected the last replacement to end with a zero byte, found none");
  }
  std::vector<bool> seen(units_.size());
  std::vector<uint32_t> open;  // offsets to children of nodes that are not checked yet
  const auto visit = [&](uint32_t node, uint32_t unit) {
    const uint32_t children = node ^ offset(unit);
    if (children >= units_.size()) {
      fail(message("expected nodes below ", units_.size(), ", found ", children));
    }
    if (has_value(unit) && value(units_[children]) >= replacements_.size()) {
      fail(message("expected replacements below ", replacements_.size(), ", found ",
                   value(units_[children])));
    }
    if (!seen[children]) open.push_back(children);
    seen[children] = true;
  };
  visit(0, units_[0] & ~(1u << 8));  // no value belongs to the empty string
  while (!open.empty()) {
    const uint32_t children = open.back();
    open.pop_back();
    for (uint32_t byte = 1; byte < 256; ++byte) {
      const uint32_t node = children ^ byte;
      if (node < units_.size() && label(units_[node]) == byte) visit(node, units_[node]);
    }
  }
}

size_t Charsmap::longest_match(std::string_view text, std::string_view& replacement) const {
  if (units_.empty()) return 0;
  size_t length = 0;
  uint32_t node = offset(units_[0]);
  for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
    const uint32_t byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (node >= units_.size() || label(units_[node]) != byte) break;
    const bool found = has_value(units_[node]);
    node ^= offset(units_[node]);
    if (!found) continue;
    length = i + 1;
    replacement = replacements_.c_str() + value(units_[node]);
  }
  return length;
}

void Charsmap::normalize(std::string_view text, std::string& out) const {
  for (size_t pos = 0; pos < text.size();) {
    std::string_view replacement;
    const size_t matched = longest_match(text.substr(pos), replacement);
    if (matched > 0) {
      out.append(replacement);
      pos += matched;
      continue;
    }
    const size_t start = pos;
    const char32_t c = unicode::decode_lenient(text, pos);
    const bool broken = c == unicode::kReplacement && pos - start == 1;
    out.append(broken ? kReplacementCharacter : text.substr(start, pos - start));
  }
}

}  // namespace kve
