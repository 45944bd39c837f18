// The normalizer table of sentencepiece models: longest-match replacement of byte sequences.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kve {

// A compressed trie (XOR-compressed double array, as sentencepiece's Darts stores it) followed by
// the replacements, which end with a zero byte each.
class Charsmap {
 public:
  // `blob`: size of the trie in bytes (32-bit little-endian), trie, replacements; empty: nothing is
  // replaced. Throws FormatError if the sizes do not fit, or a path of the trie leaves the table.
  explicit Charsmap(std::string_view blob);

  // Appends `text` with every longest match replaced; other well-formed UTF-8 is copied, any other
  // byte becomes U+FFFD.
  void normalize(std::string_view text, std::string& out) const;

 private:
  std::vector<uint32_t> units_;
  std::string replacements_;

  // A unit is a node: bits 0-7 and 31 label it, bit 8 tells that its first child holds a value,
  // bit 9 scales the offset to its children, bits 10-30 are that offset.
  static uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }
  static uint32_t label(uint32_t unit) { return unit & ((1u << 31) | 0xFF); }
  static bool has_value(uint32_t unit) { return (unit >> 8) & 1; }
  static uint32_t value(uint32_t unit) { return unit & ((1u << 31) - 1); }

  void check() const;
  size_t longest_match(std::string_view text, std::string_view& replacement) const;
};

}  // namespace kve
