#include "text/algorithm.h"

#include <algorithm>

namespace kve {
namespace {

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const size_t match = std::min(text.find(from, pos), text.size());
    out.append(text, pos, match - pos);
    if (match < text.size()) out.append(to);
    pos = match + from.size();
  }
  return out;
}

}  // namespace

std::string mark_spaces(std::string_view text) { return replace_all(text, " ", kSpaceMark); }
std::string unmark_spaces(std::string_view text) { return replace_all(text, kSpaceMark, " "); }

std::vector<Token> text_pieces(const Vocabulary& vocabulary) {
  std::vector<Token> out;
  out.reserve(vocabulary.kinds.size());
  for (size_t id = 0; id < vocabulary.kinds.size(); ++id) {
    const TokenKind kind = vocabulary.kinds[id];
    if (kind == TokenKind::normal || kind == TokenKind::user_defined || kind == TokenKind::unused) {
      out.push_back(static_cast<Token>(id));
    }
  }
  return out;
}

std::vector<Token> byte_tokens(const PieceIndex& index) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::vector<Token> out(256);
  for (size_t byte = 0; byte < 256; ++byte) {
    const std::string piece = {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'};
    out[byte] = index.find(piece);
  }
  return out;
}

int byte_value(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const int high = hex_digit(piece[3]), low = hex_digit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace kve
