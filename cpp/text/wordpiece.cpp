// WordPiece as the "bert" vocabularies use it: lower-case words without accents, each cut into the
// longest pieces from the left. GGUF marks pieces that begin a word with U+2581.
#include "base/error.h"
#include "text/algorithm.h"
#include "text/unicode.h"

namespace kve {
namespace {

// BERT gives up on longer words.
constexpr size_t kLongestWord = 100;  // characters

// The ideographs that BERT makes words of their own. Extension E begins 256 characters late, as in
// the reference.
bool is_ideograph(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
         (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

class WordPiece final : public TokenizerAlgorithm {
 public:
  explicit WordPiece(const Vocabulary& vocabulary)
      : lower_case_(vocabulary.lower_case.value_or(true)),
        strip_accents_(vocabulary.strip_accents.value_or(lower_case_)),
        prefixes_(vocabulary.pieces, text_pieces(vocabulary)),
        unknown_(vocabulary.special.unk) {
    if (unknown_ == kNoToken) {
      throw FormatError("tokenizer.ggml.unknown_token_id: expected a token, found none");
    }
  }

  void encode(std::string_view text, bool, std::vector<Token>& out) const override {
    std::u32string word, folded;
    const auto finish = [&] {
      if (!word.empty()) encode_word(word, out);
      word.clear();
    };
    for (size_t pos = 0; pos < text.size();) {
      const char32_t c = unicode::decode_lenient(text, pos);
      const uint16_t properties = unicode::properties(c);
      const bool newline_or_tab = c == U'\t' || c == U'\n' || c == U'\r';
      if (!newline_or_tab && is_removed(c, properties)) continue;
      if (properties & unicode::kSpace) {
        finish();
        continue;
      }
      folded.clear();
      fold(c, folded);
      for (const char32_t letter : folded) {
        const bool alone = is_ideograph(c) || is_punctuation(letter);
        if (alone) finish();
        word.push_back(letter);
        if (alone) finish();
      }
    }
    finish();
  }

  std::string text_of(std::string_view piece) const override { return unmark_spaces(piece); }

  Defaults defaults() const override {
    return {.add_bos = true, .add_eos = true, .marks_first_word = true};
  }

 private:
  const bool lower_case_, strip_accents_;
  PrefixIndex prefixes_;
  Token unknown_;

  static bool is_removed(char32_t c, uint16_t properties) {
    return c == 0 || c == unicode::kReplacement || (properties & unicode::kControl);
  }

  static bool is_punctuation(char32_t c) {
    const uint16_t properties = unicode::properties(c);
    return (properties & unicode::kPunctuation) || (c < 0x80 && (properties & unicode::kSymbol));
  }

  void fold(char32_t c, std::u32string& out) const {
    if (strip_accents_) {
      unicode::append_without_accents(c, out);
    } else {
      out.push_back(c);
    }
    if (!lower_case_) return;
    for (char32_t& letter : out) letter = unicode::to_lower(letter);
  }

  void encode_word(std::u32string_view word, std::vector<Token>& out) const {
    const size_t first = out.size();
    if (word.size() <= kLongestWord && encode_pieces(word, out)) return;
    out.resize(first);
    out.push_back(unknown_);
  }

  bool encode_pieces(std::u32string_view word, std::vector<Token>& out) const {
    std::string text(kSpaceMark);
    for (const char32_t c : word) unicode::append_utf8(c, text);
    size_t length = 0;
    for (size_t pos = 0; pos < text.size(); pos += length) {
      const Token token = prefixes_.longest_prefix(std::string_view(text).substr(pos), length);
      if (token == kNoToken) return false;
      out.push_back(token);
    }
    return true;
  }
};

}  // namespace

std::unique_ptr<const TokenizerAlgorithm> make_wordpiece(const Vocabulary& vocabulary,
                                                         const PieceIndex&) {
  return std::make_unique<WordPiece>(vocabulary);
}

}  // namespace kve
