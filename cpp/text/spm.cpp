// SentencePiece BPE (arXiv:1808.06226) as the "llama" vocabularies use it: merge the two neighbours
// whose union is the piece with the best score, until no union is a piece. Characters without a
// piece are spelled by byte tokens.
#include <algorithm>
#include <bit>
#include <vector>

#include "base/error.h"
#include "text/algorithm.h"
#include "text/unicode.h"

namespace kve {
namespace {

// Which characters are neighbours within some piece. Between two that never are, nothing can merge,
// so text is cut there and merged in short stretches, mostly words: the same result, much faster.
// A hashed bit set: it may claim neighbours that are none, which only makes a stretch longer.
class Neighbours {
 public:
  Neighbours() : bits_(size_t{1} << kBits) {}

  void add_piece(std::string_view piece) {
    std::string_view left;
    for (size_t pos = 0; pos < piece.size();) {
      const std::string_view right = character_at(piece, pos);
      if (pos > 0) bits_[bit(left, right)] = true;
      left = right;
      pos += right.size();
    }
  }
  bool may_join(std::string_view left, std::string_view right) const {
    return bits_[bit(left, right)];
  }
  static std::string_view character_at(std::string_view text, size_t pos) {
    return text.substr(pos, unicode::sequence_length(text[pos]));  // shorter at the end
  }

 private:
  static constexpr int kBits = 20;
  std::vector<bool> bits_;

  static uint64_t number(std::string_view character) {
    uint64_t out = 0;
    for (const char byte : character) out = out << 8 | static_cast<uint8_t>(byte);
    return out;
  }
  static size_t bit(std::string_view left, std::string_view right) {
    const uint64_t pair = number(left) << 32 | number(right);
    return static_cast<size_t>((pair * 0x9E3779B97F4A7C15u) >> (64 - kBits));
  }
};

class Spm final : public TokenizerAlgorithm {
 public:
  Spm(const Vocabulary& vocabulary, const PieceIndex& index)
      : vocabulary_(vocabulary),
        index_(index),
        add_space_(vocabulary.add_space_prefix.value_or(true)),
        is_text_(vocabulary.pieces.size()),
        byte_tokens_(byte_tokens(index)) {
    for (const Token token : text_pieces(vocabulary)) {
      is_text_[static_cast<size_t>(token)] = true;
      neighbours_.add_piece(vocabulary.pieces[static_cast<size_t>(token)]);
    }
    for (Token& token : byte_tokens_) {
      if (token == kNoToken) token = vocabulary.special.unk;
      if (token == kNoToken) {
        throw FormatError(
            "tokenizer.ggml.tokens: expected the byte tokens <0x00> to <0xFF> or an unknown token, "
            "found neither");
      }
    }
  }

  void encode(std::string_view text, bool first, std::vector<Token>& out) const override {
    const std::string marked =
        (add_space_ && first ? std::string(kSpaceMark) : std::string()) + mark_spaces(text);
    State state{.text = marked};
    std::string_view left;
    for (size_t pos = 0; pos < marked.size();) {
      const std::string_view character = Neighbours::character_at(marked, pos);
      if (pos > 0 && !neighbours_.may_join(left, character)) encode_stretch(state, out);
      const int32_t index = static_cast<int32_t>(state.symbols.size());
      state.symbols.push_back({static_cast<uint32_t>(pos), static_cast<uint32_t>(character.size()),
                               index - 1, index + 1});
      left = character;
      pos += character.size();
    }
    encode_stretch(state, out);
  }

  std::string text_of(std::string_view piece) const override { return unmark_spaces(piece); }

  Defaults defaults() const override { return {.add_bos = true, .marks_first_word = add_space_}; }

 private:
  struct Symbol {
    uint32_t start, size;  // bytes of the text; size 0: merged into its left neighbour
    int32_t previous, next;
  };
  struct Candidate {
    uint64_t order;  // best score first, then leftmost
    uint32_t size;   // of the union; differs if a neighbour has merged meanwhile
    bool operator<(const Candidate& other) const { return order > other.order; }
  };
  struct State {
    std::string_view text;
    std::vector<Symbol> symbols = {};
    std::vector<Candidate> queue = {};  // heap
  };

  const Vocabulary& vocabulary_;
  const PieceIndex& index_;
  const bool add_space_;
  std::vector<bool> is_text_;  // [n]
  Neighbours neighbours_;
  std::vector<Token> byte_tokens_;

  Token find(std::string_view text) const {
    const Token token = index_.find(text);
    return token != kNoToken && is_text_[static_cast<size_t>(token)] ? token : kNoToken;
  }

  // Merges the symbols of `state`, appends their tokens and empties it.
  void encode_stretch(State& state, std::vector<Token>& out) const {
    if (state.symbols.empty()) return;
    state.symbols.back().next = -1;
    merge(state);
    for (int32_t i = 0; i >= 0; i = state.symbols[static_cast<size_t>(i)].next) {
      const Symbol& symbol = state.symbols[static_cast<size_t>(i)];
      const std::string_view piece = state.text.substr(symbol.start, symbol.size);
      const Token token = find(piece);
      if (token != kNoToken) {
        out.push_back(token);
      } else {
        for (const char byte : piece) out.push_back(byte_tokens_[static_cast<uint8_t>(byte)]);
      }
    }
    state.symbols.clear();
  }

  bool candidate(const State& state, int32_t left, Candidate& out) const {
    if (left < 0) return false;
    const Symbol& a = state.symbols[static_cast<size_t>(left)];
    if (a.next < 0) return false;
    out.size = a.size + state.symbols[static_cast<size_t>(a.next)].size;
    const Token token = find(state.text.substr(a.start, out.size));
    if (token == kNoToken) return false;
    out.order = uint64_t{descending(score(token))} << 32 | static_cast<uint32_t>(left);
    return true;
  }

  float score(Token token) const {
    return vocabulary_.scores.empty() ? 0 : vocabulary_.scores[static_cast<size_t>(token)];
  }

  // Unsigned numbers in the opposite order of the (finite or infinite) scores.
  static uint32_t descending(float score) {
    const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes +0
    return bits & 0x80000000u ? bits : 0x7FFFFFFFu - bits;
  }

  void merge(State& state) const {
    Candidate next;
    for (size_t i = 0; i < state.symbols.size(); ++i) {
      if (candidate(state, static_cast<int32_t>(i), next)) state.queue.push_back(next);
    }
    std::make_heap(state.queue.begin(), state.queue.end());
    const auto push = [&](int32_t left) {
      if (!candidate(state, left, next)) return;
      state.queue.push_back(next);
      std::push_heap(state.queue.begin(), state.queue.end());
    };
    while (!state.queue.empty()) {
      std::pop_heap(state.queue.begin(), state.queue.end());
      const Candidate best = state.queue.back();
      state.queue.pop_back();
      const int32_t left = static_cast<int32_t>(best.order & 0xFFFFFFFF);
      Symbol& a = state.symbols[static_cast<size_t>(left)];
      if (a.size == 0 || a.next < 0) continue;
      Symbol& b = state.symbols[static_cast<size_t>(a.next)];
      if (a.size + b.size != best.size) continue;
      a.size += b.size;
      a.next = b.next;
      b.size = 0;
      if (a.next >= 0) state.symbols[static_cast<size_t>(a.next)].previous = left;
      push(a.previous);
      push(left);
    }
  }
};

}  // namespace

std::unique_ptr<const TokenizerAlgorithm> make_spm(const Vocabulary& vocabulary,
                                                   const PieceIndex& index) {
  return std::make_unique<Spm>(vocabulary, index);
}

}  // namespace kve
