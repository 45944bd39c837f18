// The words of a cache spec, and what their values may be.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/printable.h"

namespace kve {

// A word of the text and where it begins.
struct SpecWord {
  std::string_view text;
  size_t at = 0;
};

struct SpecParameter {
  SpecWord key;
  SpecWord value;
};

// Takes words and signs from a text, which must live as long. What is not as expected throws a
// ConfigError that says where.
class SpecWords {
 public:
  explicit SpecWords(std::string_view text) : text_(text) {}

  std::string_view text() const { return text_; }
  size_t at() const { return at_; }
  bool at_end() const { return at_ == text_.size(); }
  std::string_view next() const { return text_.substr(at_, 1); }
  [[noreturn]] void fail(size_t at, const std::string& what) const;

  // Whether `sign` is next, which is then taken. Blanks before it are skipped.
  bool take(char sign);
  SpecWord word(std::string_view what);

  // Values of the parameter `key`.
  int number(const SpecWord& key, const SpecWord& word, int low, int high) const;
  // "12" or "4x3", of 1 to `most` such numbers.
  std::vector<int> numbers(const SpecWord& key, const SpecWord& word, size_t most, int low,
                           int high) const;
  // A number of tokens that fills pages.
  int pages(const SpecWord& key, const SpecWord& word) const;
  // "0.375", above 0 and below 1, in thousandths.
  int thousandths(const SpecWord& key, const SpecWord& word) const;
  // The values that share a scale: "32", "head" or "row".
  int group_of(const SpecWord& word) const;
  // "3%", of at most `most`.
  int per_cent(const SpecWord& key, const SpecWord& word, int most) const;
  // "3" or "2-5", of numbers below `count`, as where it begins and ends.
  std::pair<int, int> range(const SpecWord& key, const SpecWord& value, int count) const;
  template <class Value, size_t kSize>
  Value one_of(const SpecWord& key, const SpecWord& word,
               const std::string_view (&names)[kSize]) const {
    std::string known;
    for (size_t i = 0; i < kSize; ++i) {
      if (word.text == names[i]) return static_cast<Value>(i);
      known += message(i == 0 ? "" : i + 1 == kSize ? " or " : ", ", names[i]);
    }
    fail(word.at, message(key.text, ": expected ", known, ", found ", quoted(word.text)));
  }

 private:
  void skip_blanks();

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace kve
