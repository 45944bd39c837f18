// Small vocabularies for the tests of text/.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "text/tokenizer.h"
#include "text/unicode.h"

namespace kve::testing {

// Appends a piece and returns its id.
inline Token add_piece(Vocabulary& vocabulary, std::string piece, float score = 0,
                       TokenKind kind = TokenKind::normal) {
  vocabulary.pieces.push_back(std::move(piece));
  vocabulary.scores.push_back(score);
  vocabulary.kinds.push_back(kind);
  return static_cast<Token>(vocabulary.pieces.size()) - 1;
}

// GPT-2's spelling of a byte string.
inline std::string spell(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const unsigned byte = static_cast<unsigned char>(c);
    const auto hidden = [](unsigned b) { return b < 0x21 || (b > 0x7E && b < 0xA1) || b == 0xAD; };
    unsigned code = byte;
    if (hidden(byte)) {
      code = 256;
      for (unsigned b = 0; b < byte; ++b) code += hidden(b);
    }
    unicode::append_utf8(code, out);
  }
  return out;
}

// Byte-level BPE: token b spells byte b, token 256 + i is the result of merge i.
inline Vocabulary byte_level(
    std::string pre, std::initializer_list<std::pair<std::string_view, std::string_view>> merges) {
  Vocabulary out;
  out.model = "gpt2";
  out.pre = std::move(pre);
  for (int byte = 0; byte < 256; ++byte) {
    add_piece(out, spell(std::string(1, static_cast<char>(byte))));
  }
  for (const auto& [left, right] : merges) {
    out.merges.push_back(spell(left) + " " + spell(right));
    add_piece(out, spell(std::string(left) + std::string(right)));
  }
  return out;
}

// The tokens <0x00> to <0xFF>; returns the first.
inline Token add_byte_tokens(Vocabulary& vocabulary) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  const Token first = static_cast<Token>(vocabulary.pieces.size());
  for (size_t byte = 0; byte < 256; ++byte) {
    add_piece(vocabulary, {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'}, 0,
              TokenKind::byte);
  }
  return first;
}

// SPM: <unk>, <s>, </s>, 256 byte tokens (from 3), then `pieces` (from 259) with their scores.
inline constexpr Token kSpmFirst = 259;
inline Vocabulary spm(std::initializer_list<std::pair<std::string_view, float>> pieces) {
  Vocabulary out;
  out.model = "llama";
  out.special.unk = add_piece(out, "<unk>", 0, TokenKind::unknown);
  out.special.bos = add_piece(out, "<s>", 0, TokenKind::control);
  out.special.eos = add_piece(out, "</s>", 0, TokenKind::control);
  add_byte_tokens(out);
  for (const auto& [piece, score] : pieces) add_piece(out, std::string(piece), score);
  return out;
}

inline constexpr EncodeOptions kPlain{.add_special = false};
inline constexpr EncodeOptions kParse{.add_special = false, .parse_special = true};

using Tokens = std::vector<Token>;

}  // namespace kve::testing
