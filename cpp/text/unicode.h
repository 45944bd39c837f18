// Code points and their properties, as far as tokenizers ask for them (Unicode 15.1).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kve::unicode {

// Properties of a code point: one bit of the general category (none for unassigned code points) and
// any of the others.
enum Property : uint16_t {
  kUpper = 1 << 0,        // Lu, Lt
  kLower = 1 << 1,        // Ll
  kOtherLetter = 1 << 2,  // Lm, Lo
  kNonspacing = 1 << 3,   // Mn
  kOtherMark = 1 << 4,    // Mc, Me
  kDecimal = 1 << 5,      // Nd
  kOtherNumber = 1 << 6,  // Nl, No
  kPunctuation = 1 << 7,  // P
  kSymbol = 1 << 8,       // S
  kSeparator = 1 << 9,    // Z
  kControl = 1 << 10,     // Cc, Cf, Cs, Co
  kSpace = 1 << 11,       // White_Space
  kNewline = 1 << 12,     // \r and \n
  kBlank = 1 << 13,       // ' '
  kHan = 1 << 14,         // script Han
};
inline constexpr uint16_t kLetter = kUpper | kLower | kOtherLetter;
inline constexpr uint16_t kMark = kNonspacing | kOtherMark;
inline constexpr uint16_t kNumber = kDecimal | kOtherNumber;

inline constexpr char32_t kReplacement = 0xFFFD;

// The Property bits; 0 for values above U+10FFFF.
uint16_t properties(char32_t code_point);
// Simple lower-case mapping.
char32_t to_lower(char32_t code_point);
// Appends the canonical decomposition (NFD) without its nonspacing marks: "é" gives "e", a
// nonspacing mark gives nothing.
void append_without_accents(char32_t code_point, std::u32string& out);

// Bytes of the sequence that a lead byte announces: 1 for ASCII and for continuation bytes.
size_t sequence_length(char lead_byte);
// Reads one code point at `pos` and moves `pos` behind it. Only the shape of the sequence is
// checked: surrogates and overlong forms are read as the numbers they spell. At a byte that does
// not begin a sequence of the right shape, or spells more than U+10FFFF, moves on by that byte and
// returns U+FFFD. This is how llama.cpp reads prompts, so that token ids agree on broken input.
char32_t decode_lenient(std::string_view text, size_t& pos);
std::u32string decode_lenient(std::string_view text);
void append_utf8(char32_t code_point, std::string& out);

}  // namespace kve::unicode
