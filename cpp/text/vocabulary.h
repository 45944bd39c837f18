// The vocabulary of a model as plain data, the way a GGUF file states it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/token.h"

namespace kve {

class GgufFile;

// What an entry of a vocabulary is for; the values of tokenizer.ggml.token_type.
enum class TokenKind : uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6,
};

// Entries with a role; kNoToken where the vocabulary has none.
struct SpecialTokens {
  Token bos = kNoToken, eos = kNoToken, eot = kNoToken, eom = kNoToken;
  Token unk = kNoToken, sep = kNoToken, pad = kNoToken, cls = kNoToken, mask = kNoToken;
  Token fim_prefix = kNoToken, fim_suffix = kNoToken, fim_middle = kNoToken;
  Token fim_pad = kNoToken, fim_repo = kNoToken, fim_separator = kNoToken;
};

// tokenizer.ggml.* of a file. Flags that a file may leave out stay empty: their default depends on
// `model` and `pre`, and is the tokenizer's to know.
struct Vocabulary {
  std::string model;         // "gpt2", "llama", "t5", "bert", "rwkv", "gemma4"
  std::string pre;           // pre-tokenizer of byte-level BPE; empty if the file names none
  std::string architecture;  // general.architecture, empty if unknown
  std::string model_name;    // general.name, empty if unknown

  std::vector<std::string> pieces;  // [n]
  std::vector<float> scores;        // [n], or empty: all zero
  std::vector<TokenKind> kinds;     // [n], or empty: all normal
  std::vector<std::string> merges;  // "left right", best first; BPE only

  SpecialTokens special;
  std::optional<bool> add_bos, add_eos, add_sep;
  std::optional<bool> add_space_prefix;           // SPM and unigram
  std::optional<bool> remove_extra_whitespaces;   // unigram
  std::optional<bool> escape_whitespaces;         // unigram
  std::optional<bool> lower_case, strip_accents;  // WordPiece
  std::string precompiled_charsmap;               // unigram: sentencepiece's normalizer table
};

// Reads tokenizer.ggml.*; works on files without tensors. A role that the file does not mention, or
// gives to an id outside of the vocabulary (converters write -1 for "none"), gets the entry that
// vocabularies of this model have by convention, if there is one.
// Throws FormatError if a key has the wrong type or an array the wrong length; UnsupportedError if
// the file has no tokenizer (tokenizer.ggml.model missing, or "none").
Vocabulary read_vocabulary(const GgufFile& file);

}  // namespace kve
