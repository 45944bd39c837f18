// The algorithms behind Tokenizer, one file each: bpe.cpp, spm.cpp, unigram.cpp, wordpiece.cpp,
// rwkv.cpp. An algorithm sees plain text only; special tokens have been cut out before.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/token.h"
#include "text/piece_index.h"
#include "text/vocabulary.h"

namespace kve {

class TokenizerAlgorithm {
 public:
  // What a vocabulary of this kind does unless its file says otherwise.
  struct Defaults {
    bool add_bos = false;
    bool add_eos = false;
    bool marks_first_word = false;  // decoding drops a space before the first word
  };

  virtual ~TokenizerAlgorithm() = default;

  // Appends the tokens of `text`. `first`: it begins the input, or follows a special token.
  virtual void encode(std::string_view text, bool first, std::vector<Token>& out) const = 0;
  // The bytes that an ordinary piece stands for.
  virtual std::string text_of(std::string_view piece) const = 0;
  virtual Defaults defaults() const = 0;
};

// The arguments must outlive the algorithm. All throw FormatError for tables that contradict each
// other, make_bpe also UnsupportedError for an unknown pre-tokenizer.
using MakeAlgorithm = std::unique_ptr<const TokenizerAlgorithm> (*)(const Vocabulary&,
                                                                    const PieceIndex&);
std::unique_ptr<const TokenizerAlgorithm> make_bpe(const Vocabulary&, const PieceIndex&);
std::unique_ptr<const TokenizerAlgorithm> make_spm(const Vocabulary&, const PieceIndex&);
std::unique_ptr<const TokenizerAlgorithm> make_unigram(const Vocabulary&, const PieceIndex&);
std::unique_ptr<const TokenizerAlgorithm> make_wordpiece(const Vocabulary&, const PieceIndex&);
std::unique_ptr<const TokenizerAlgorithm> make_rwkv(const Vocabulary&, const PieceIndex&);

// U+2581, which stands for a space in the pieces of SPM, unigram, WordPiece and gemma4.
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";
// Replaces every space by the mark, and back.
std::string mark_spaces(std::string_view text);
std::string unmark_spaces(std::string_view text);

// The pieces that plain text may become: normal, user-defined and unused ones.
std::vector<Token> text_pieces(const Vocabulary& vocabulary);

// The tokens "<0x00>" to "<0xFF>" that spell single bytes; kNoToken where one is missing.
std::vector<Token> byte_tokens(const PieceIndex& index);
// The byte that "<0x0A>" spells; -1 if the piece has another form.
int byte_value(std::string_view piece);
// -1 if `c` is none.
int hex_digit(char c);

}  // namespace kve
