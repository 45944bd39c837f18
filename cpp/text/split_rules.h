// The parts that pre-tokenizers are made of. A pre-tokenizer cuts text into words by a sequence of
// regular expressions; each of them is a Stage here, its alternatives are Rules tried in order.
// Hand-written matching keeps the time linear in the text, which a backtracking regex engine with
// a limited stack would not.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "text/unicode.h"

namespace kve {

struct CodeRange {
  char32_t first, last;
};

// A set of characters: [properties or ranges], or [^properties or ranges].
struct CharSet {
  uint16_t properties = 0;  // unicode::Property bits, any of them
  std::span<const CodeRange> ranges = {};
  bool complement = false;

  bool has(char32_t c, uint16_t c_properties) const {
    return ((c_properties & properties) != 0 || in_ranges(c)) != complement;
  }

 private:
  bool in_ranges(char32_t c) const {
    for (const CodeRange& range : ranges) {
      if (c <= range.last) return c >= range.first;  // sorted
    }
    return false;
  }
};

// The fragment of a text that a stage is matched in: characters [begin, end).
class Fragment {
 public:
  Fragment(std::u32string_view text, std::span<const uint16_t> properties, size_t first,
           size_t past_last)
      : begin(first), end(past_last), text_(text), properties_(properties) {}

  const size_t begin, end;

  char32_t at(size_t pos) const { return text_[pos]; }
  bool in(const CharSet& set, size_t pos) const {
    return pos < end && set.has(text_[pos], properties_[pos]);
  }
  bool is(uint16_t properties, size_t pos) const {
    return pos < end && (properties_[pos] & properties) != 0;
  }
  bool starts_with(std::u32string_view prefix, size_t pos) const {
    return text_.substr(pos, end - pos).starts_with(prefix);
  }
  size_t skip(const CharSet& set, size_t pos, size_t most = SIZE_MAX) const;

  // A maximal run of characters. Remembered, because rules that look ahead over a whole run are
  // tried again within it.
  struct Run {
    size_t begin = 0, end = 0;
    size_t after_newline = 0;  // behind the last \r or \n of the run; 0 if there is none
  };
  const Run& space_run(size_t pos);
  const Run& run_of(const CharSet& set, size_t pos);  // with one `set` per stage only

 private:
  std::u32string_view text_;
  std::span<const uint16_t> properties_;
  Run space_run_, other_run_;
};

struct Rule;
// Returns the end of the match that begins at `pos`, or kNoMatch.
using MatchFunction = size_t (*)(const Rule&, Fragment&, size_t pos);
inline constexpr size_t kNoMatch = SIZE_MAX;

struct Rule {
  MatchFunction match = nullptr;
  CharSet body = {};
  CharSet lead = {};  // one character before the body
  CharSet tail = {};  // any number of characters behind it
  bool lead_required = false;
  bool flag = false;  // meaning depends on the function
  size_t least = 1, most = SIZE_MAX;
  size_t tail_most = SIZE_MAX;
};
using Stage = std::vector<Rule>;

// lead? body{least,most} tail*
size_t match_run(const Rule&, Fragment&, size_t pos);
// 's 't 're 've 'm 'll 'd; `flag`: upper case as well.
size_t match_contraction(const Rule&, Fragment&, size_t pos);
// \s*[\r\n]+
size_t match_spaces_to_newline(const Rule&, Fragment&, size_t pos);
// \s+(?!\S): all but the last space before a word.
size_t match_spaces_before_last(const Rule&, Fragment&, size_t pos);
// \s+$
size_t match_trailing_spaces(const Rule&, Fragment&, size_t pos);
// \s{512}(?!\S)|\s{256}(?!\S)|...|\s{4}(?!\S)|\s{1,2}(?!\S)|\s
size_t match_spaces_in_powers(const Rule&, Fragment&, size_t pos);
// Words in one case: lead?[Lu Lt Lm Lo M]*[Ll Lm Lo M]+ or lead?[Lu Lt Lm Lo M]+[Ll Lm Lo M]*,
// without characters in `tail`; `flag`: then an optional contraction.
size_t match_cased_word(const Rule&, Fragment&, size_t pos);
// lead?(\p{L}\p{M}*(?: \p{L}\p{M}*)*)+: words with single spaces between them.
size_t match_phrase(const Rule&, Fragment&, size_t pos);
// Groups of three of `body` counted from the end of the run: 1 234 567. Runs before a character of
// `tail` are not matched.
size_t match_groups_of_three(const Rule&, Fragment&, size_t pos);
// Up to the next place that the end of the run of `body` is a multiple of three behind:
// what is between the empty matches of (?=(\d{3})+(?!\d)).
size_t match_to_thousands(const Rule&, Fragment&, size_t pos);
// <sentinel:123>
size_t match_sentinel(const Rule&, Fragment&, size_t pos);
// IMGIMGABCDZ: up to four letters A to I
size_t match_image_code(const Rule&, Fragment&, size_t pos);
// \t, \n, four or two spaces
size_t match_indentation(const Rule&, Fragment&, size_t pos);

// Cuts [begin, end) of the text: every match is a word, and so is every stretch between matches.
// Appends the end of each word to `ends`.
void cut(const Stage& stage, std::u32string_view text, std::span<const uint16_t> properties,
         size_t begin, size_t end, std::vector<uint32_t>& ends);

}  // namespace kve
