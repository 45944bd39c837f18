// The "rwkv" vocabularies: at every place the longest piece that matches. Pieces are byte strings,
// written with the escapes \t \n \r \x0A.
#include "text/algorithm.h"

namespace kve {
namespace {

std::string unescape(std::string_view piece) {
  std::string out;
  for (size_t i = 0; i < piece.size(); ++i) {
    if (piece[i] != '\\' || i + 1 == piece.size()) {
      out.push_back(piece[i]);
      continue;
    }
    const char c = piece[++i];
    if (c == 'x' && i + 2 < piece.size() && hex_digit(piece[i + 1]) >= 0 &&
        hex_digit(piece[i + 2]) >= 0) {
      out.push_back(static_cast<char>(hex_digit(piece[i + 1]) * 16 + hex_digit(piece[i + 2])));
      i += 2;
    } else {
      out.push_back(c == 't' ? '\t' : c == 'n' ? '\n' : c == 'r' ? '\r' : c);
    }
  }
  return out;
}

class Rwkv final : public TokenizerAlgorithm {
 public:
  explicit Rwkv(const Vocabulary& vocabulary)
      : bytes_(unescaped(vocabulary.pieces)),
        prefixes_(bytes_, text_pieces(vocabulary)),
        unknown_(vocabulary.special.unk) {}

  void encode(std::string_view text, bool, std::vector<Token>& out) const override {
    for (size_t pos = 0; pos < text.size();) {
      size_t length = 1;
      const Token token = prefixes_.longest_prefix(text.substr(pos), length);
      if (token != kNoToken) {
        out.push_back(token);
      } else if (unknown_ != kNoToken) {
        out.push_back(unknown_);
      }
      pos += length;
    }
  }

  std::string text_of(std::string_view piece) const override { return unescape(piece); }
  Defaults defaults() const override { return {}; }

 private:
  std::vector<std::string> bytes_;
  PrefixIndex prefixes_;
  Token unknown_;

  static std::vector<std::string> unescaped(const std::vector<std::string>& pieces) {
    std::vector<std::string> out;
    for (const std::string& piece : pieces) out.push_back(unescape(piece));
    return out;
  }
};

}  // namespace

std::unique_ptr<const TokenizerAlgorithm> make_rwkv(const Vocabulary& vocabulary,
                                                    const PieceIndex&) {
  return std::make_unique<Rwkv>(vocabulary);
}

}  // namespace kve
