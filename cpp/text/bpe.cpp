// Byte-pair encoding (arXiv:1508.07909) within the words of a pre-tokenizer. Two alphabets:
// byte-level (GPT-2), where a piece spells bytes by 256 printable characters, and raw UTF-8 with
// U+2581 for spaces and "<0xXX>" tokens for what has no piece (gemma4).
#include <algorithm>
#include <array>
#include <functional>
#include <unordered_map>

#include "base/error.h"
#include "base/printable.h"
#include "text/algorithm.h"
#include "text/pretokenizer.h"
#include "text/unicode.h"

namespace kve {
namespace {

// GPT-2 spells the bytes that are no printable Latin-1 characters by U+0100 and following.
constexpr std::array<char32_t, 256> make_byte_alphabet() {
  std::array<char32_t, 256> out{};
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    out[byte] = printable ? byte : next++;
  }
  return out;
}
constexpr std::array<char32_t, 256> kByteAlphabet = make_byte_alphabet();
constexpr char32_t kAlphabetEnd = 0x144;  // behind the last character of the alphabet

constexpr std::array<int, kAlphabetEnd> make_alphabet_bytes() {
  std::array<int, kAlphabetEnd> out{};
  out.fill(-1);
  for (size_t byte = 0; byte < 256; ++byte) out[kByteAlphabet[byte]] = static_cast<int>(byte);
  return out;
}
constexpr std::array<int, kAlphabetEnd> kAlphabetBytes = make_alphabet_bytes();

// A string that merging can produce: the pieces of the vocabulary under their token id, and behind
// them what only merges name.
using Symbol = uint32_t;
constexpr Symbol kNoSymbol = 0xFFFFFFFF;

class Bpe final : public TokenizerAlgorithm {
 public:
  Bpe(const Vocabulary& vocabulary, const PieceIndex& index)
      : vocabulary_(vocabulary),
        index_(index),
        pre_tokenizer_(vocabulary.model == "gemma4" ? "gemma4" : vocabulary.pre),
        pairs_(vocabulary.merges.size()),
        byte_tokens_(byte_tokens(index)) {
    for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) add_merge(rank);
    for (size_t byte = 0; byte < 256; ++byte) {
      std::string character;
      unicode::append_utf8(kByteAlphabet[byte], character);
      byte_symbols_[byte] = find_symbol(character);
    }
  }

  void encode(std::string_view text, bool, std::vector<Token>& out) const override {
    const bool raw = pre_tokenizer_.traits().raw_text;
    const std::u32string characters = unicode::decode_lenient(raw ? mark_spaces(text) : text);
    Word word;
    size_t begin = 0;
    for (const uint32_t end : pre_tokenizer_.split(characters)) {
      word.text.clear();
      for (size_t i = begin; i < end; ++i) unicode::append_utf8(characters[i], word.text);
      encode_word(word, out);
      begin = end;
    }
  }

  std::string text_of(std::string_view piece) const override {
    if (pre_tokenizer_.traits().raw_text) return unmark_spaces(piece);
    std::string out;
    for (size_t pos = 0; pos < piece.size();) {
      const char32_t c = unicode::decode_lenient(piece, pos);
      // A piece outside of the alphabet was added as plain text.
      if (c >= kAlphabetEnd || kAlphabetBytes[c] < 0) return std::string(piece);
      out.push_back(static_cast<char>(kAlphabetBytes[c]));
    }
    return out;
  }

  Defaults defaults() const override { return {.add_bos = pre_tokenizer_.traits().add_bos}; }

 private:
  struct Merge {
    Symbol left, right, result;
  };
  // A word while it is merged: a list of symbols, linked by their position in the initial list.
  struct Word {
    std::string text;  // UTF-8
    std::vector<Symbol> symbols;
    std::vector<uint32_t> starts;  // of each symbol in `text`
    std::vector<int32_t> next, previous;
    std::vector<uint64_t> queue;  // heap of rank << 32 | position: best rank first, then leftmost
  };

  const Vocabulary& vocabulary_;
  const PieceIndex& index_;
  PreTokenizer pre_tokenizer_;
  std::vector<Merge> merges_;  // by rank
  PairMap pairs_;
  std::unordered_map<std::string, Symbol> extra_symbols_;
  std::array<Symbol, 256> byte_symbols_{};
  std::vector<Token> byte_tokens_;

  Symbol find_symbol(const std::string& text) const {
    const Token token = index_.find(text);
    if (token != kNoToken) return static_cast<Symbol>(token);
    const auto it = extra_symbols_.find(text);
    return it == extra_symbols_.end() ? kNoSymbol : it->second;
  }

  Symbol intern(const std::string& text) {
    const Symbol known = find_symbol(text);
    if (known != kNoSymbol) return known;
    const size_t id = vocabulary_.pieces.size() + extra_symbols_.size();
    return extra_symbols_.emplace(text, static_cast<Symbol>(id)).first->second;
  }

  void add_merge(size_t rank) {
    const std::string& merge = vocabulary_.merges[rank];
    // A piece may itself begin with a space.
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos || space + 1 == merge.size()) {
      throw FormatError(message("tokenizer.ggml.merges[", rank,
                                "]: expected two pieces separated by a space, found ",
                                quoted(merge)));
    }
    const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
    merges_.push_back({intern(left), intern(right), intern(left + right)});
    pairs_.add(merges_.back().left, merges_.back().right, static_cast<uint32_t>(rank));
  }

  void encode_word(Word& word, std::vector<Token>& out) const {
    const Token whole = find_whole(word.text);
    if (whole != kNoToken) {
      out.push_back(whole);
      return;
    }
    split_into_symbols(word);
    merge_symbols(word);
    const size_t pieces = vocabulary_.pieces.size();
    for (int32_t i = word.symbols.empty() ? -1 : 0; i >= 0;) {
      const size_t at = static_cast<size_t>(i);
      if (word.symbols[at] < pieces) {
        out.push_back(static_cast<Token>(word.symbols[at]));
      } else {
        const size_t end =
            word.next[at] < 0 ? word.text.size() : word.starts[static_cast<size_t>(word.next[at])];
        append_bytes(std::string_view(word.text).substr(word.starts[at], end - word.starts[at]),
                     out);
      }
      i = word.next[at];
    }
  }

  // The token of a word that is not merged but looked up.
  Token find_whole(const std::string& word) const {
    const PreTokenizer::Traits& traits = pre_tokenizer_.traits();
    const bool newlines = traits.newline_words && word.find_first_not_of('\n') == word.npos;
    if (!traits.ignore_merges && !newlines) return kNoToken;
    if (traits.raw_text) return index_.find(word);
    std::string spelled;
    for (const char byte : word) {
      unicode::append_utf8(kByteAlphabet[static_cast<uint8_t>(byte)], spelled);
    }
    return index_.find(spelled);
  }

  void split_into_symbols(Word& word) const {
    word.symbols.clear();
    word.starts.clear();
    const bool raw = pre_tokenizer_.traits().raw_text;
    for (size_t pos = 0; pos < word.text.size();) {
      const size_t length = raw ? unicode::sequence_length(word.text[pos]) : 1;
      word.symbols.push_back(raw ? find_symbol(word.text.substr(pos, length))
                                 : byte_symbols_[static_cast<uint8_t>(word.text[pos])]);
      word.starts.push_back(static_cast<uint32_t>(pos));
      pos += length;
    }
    const size_t n = word.symbols.size();
    word.next.resize(n);
    word.previous.resize(n);
    for (size_t i = 0; i < n; ++i) {
      word.next[i] = i + 1 < n ? static_cast<int32_t>(i + 1) : -1;
      word.previous[i] = static_cast<int32_t>(i) - 1;
    }
  }

  // The queue's entry for merging the symbol at `left` with its neighbour; false if nothing does.
  bool candidate(const Word& word, int32_t left, uint64_t& entry) const {
    const int32_t right = left < 0 ? -1 : word.next[static_cast<size_t>(left)];
    if (right < 0) return false;
    const uint32_t rank = pairs_.find(word.symbols[static_cast<size_t>(left)],
                                      word.symbols[static_cast<size_t>(right)]);
    entry = uint64_t{rank} << 32 | static_cast<uint32_t>(left);
    return rank != PairMap::kNone;
  }

  void merge_symbols(Word& word) const {
    std::vector<uint64_t>& queue = word.queue;
    queue.clear();
    uint64_t entry = 0;
    for (size_t i = 0; i < word.symbols.size(); ++i) {
      if (candidate(word, static_cast<int32_t>(i), entry)) queue.push_back(entry);
    }
    std::make_heap(queue.begin(), queue.end(), std::greater<>());
    const auto push = [&](int32_t left) {
      if (!candidate(word, left, entry)) return;
      queue.push_back(entry);
      std::push_heap(queue.begin(), queue.end(), std::greater<>());
    };
    while (!queue.empty()) {
      std::pop_heap(queue.begin(), queue.end(), std::greater<>());
      const uint64_t best = queue.back();
      queue.pop_back();
      const int32_t left = static_cast<int32_t>(best & 0xFFFFFFFF);
      // Outdated if a neighbour has merged meanwhile.
      if (!candidate(word, left, entry) || entry != best) continue;
      const size_t at = static_cast<size_t>(left);
      const size_t right = static_cast<size_t>(word.next[at]);
      word.symbols[at] = merges_[best >> 32].result;
      word.symbols[right] = kNoSymbol;
      word.next[at] = word.next[right];
      word.next[right] = -1;
      if (word.next[at] >= 0) word.previous[static_cast<size_t>(word.next[at])] = left;
      push(word.previous[at]);
      push(left);
    }
  }

  // Spells what is no piece of the vocabulary byte by byte. Byte-level vocabularies leave out bytes
  // that did not occur in training, and have no token for "unknown": such a byte is dropped, by the
  // reference implementations too.
  void append_bytes(std::string_view text, std::vector<Token>& out) const {
    const bool raw = pre_tokenizer_.traits().raw_text;
    for (const char byte : text) {
      const size_t value = static_cast<uint8_t>(byte);
      Token token = kNoToken;
      if (raw) {
        token = byte_tokens_[value] == kNoToken ? vocabulary_.special.unk : byte_tokens_[value];
      } else if (byte_symbols_[value] < vocabulary_.pieces.size()) {
        token = static_cast<Token>(byte_symbols_[value]);
      }
      if (token != kNoToken) out.push_back(token);
    }
  }
};

}  // namespace

std::unique_ptr<const TokenizerAlgorithm> make_bpe(const Vocabulary& vocabulary,
                                                   const PieceIndex& index) {
  return std::make_unique<Bpe>(vocabulary, index);
}

}  // namespace kve
