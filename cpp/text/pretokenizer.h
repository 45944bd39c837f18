// Cuts text into the words that byte-level BPE merges within. A GGUF file names its pre-tokenizer
// in tokenizer.ggml.pre; many names stand for the same cuts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/split_rules.h"

namespace kve {

class PreTokenizer {
 public:
  // What else the name of a pre-tokenizer tells about its vocabulary.
  struct Traits {
    bool ignore_merges = false;  // a word that is a piece is that token, whatever the merges say
    bool add_bos = false;        // unless the file says otherwise
    bool raw_text = false;       // pieces are UTF-8 with U+2581 for spaces, not byte-level
    bool newline_words = false;  // a run of newlines that is a piece is that token
  };

  // Throws UnsupportedError, listing the known names.
  explicit PreTokenizer(std::string_view name);

  const Traits& traits() const { return traits_; }
  // The end of each word, in characters. Words cover the text.
  std::vector<uint32_t> split(std::u32string_view text) const;

 private:
  Traits traits_;
  std::vector<Stage> stages_;
};

}  // namespace kve
