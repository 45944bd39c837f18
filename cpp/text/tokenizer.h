// text/ turns text into tokens and back, and conversations into text. A Tokenizer is made from the
// Vocabulary of a GGUF file; which algorithm it runs (byte-level BPE, SPM, unigram, WordPiece, ...)
// is the file's choice and invisible here. Token ids are those of the reference implementations.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/token.h"
#include "text/vocabulary.h"

namespace kve {

struct EncodeOptions {
  // Surround the text with the BOS/EOS/CLS/SEP tokens that the vocabulary asks for.
  bool add_special = true;
  // Text that spells a control token ("<|im_start|>") becomes that token. Without it such text is
  // plain text; user-defined tokens are recognised either way.
  bool parse_special = false;
};

struct DecodeOptions {
  // Spell control tokens out instead of dropping them.
  bool render_special = false;
  // Drop the space that encode() put before the first word (SPM, unigram and WordPiece).
  bool remove_space_prefix = true;
};

// Immutable; may be shared between threads.
class Tokenizer {
 public:
  // Throws UnsupportedError for an unknown vocabulary.model or .pre (the message lists the known
  // ones), FormatError for tables that contradict each other.
  static std::unique_ptr<const Tokenizer> create(Vocabulary vocabulary);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Any bytes are accepted; the time is O(n log n) in their number. Throws ConfigError above
  // 512 MiB.
  std::vector<Token> encode(std::string_view text, EncodeOptions options = {}) const;

  // The bytes a token stands for, which may be part of a UTF-8 sequence. Empty for unused tokens,
  // and for control tokens unless `render_special`. Throws ConfigError if `token` is not in the
  // vocabulary.
  std::string piece(Token token, bool render_special = true) const;
  // Throws ConfigError if a token is not in the vocabulary. The result may be ill-formed UTF-8 if
  // the tokens are; Utf8Stream repairs it.
  std::string decode(std::span<const Token> tokens, DecodeOptions options = {}) const;

  int vocab_size() const { return static_cast<int>(vocabulary_.pieces.size()); }
  // With the roles and kinds that create() found out.
  const Vocabulary& vocabulary() const { return vocabulary_; }

  // kNoToken where the vocabulary has none.
  Token bos() const { return vocabulary_.special.bos; }
  Token eos() const { return vocabulary_.special.eos; }
  Token find(std::string_view piece) const;  // by exact stored text

  // What encode() adds with add_special.
  bool add_bos() const { return prefix_ != kNoToken; }
  bool add_eos() const { return suffix_ != kNoToken; }
  // EOS, EOT, EOM and every other token that ends an answer.
  bool is_end_of_generation(Token token) const;

 private:
  struct Parts;  // the tables and the algorithm

  explicit Tokenizer(Vocabulary vocabulary);

  Vocabulary vocabulary_;
  std::unique_ptr<const Parts> parts_;
  Token prefix_ = kNoToken, suffix_ = kNoToken;

  void choose_prefix_and_suffix();
};

// Cuts a stream of bytes (the pieces of generated tokens) at UTF-8 borders: what push() and flush()
// return is always well-formed. An ill-formed sequence becomes U+FFFD, one for each maximal part
// of a well-formed one, as the Unicode standard recommends.
class Utf8Stream {
 public:
  // The longest complete prefix of everything pushed and not returned yet.
  std::string push(std::string_view bytes);
  // The end of the stream: an unfinished sequence becomes U+FFFD.
  std::string flush();

 private:
  std::string pending_;  // at most 3 bytes
};

}  // namespace kve
