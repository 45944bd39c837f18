#include "cache/spec_words.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "cache/registry.h"
#include "cache/spec_names.h"
#include "formats/cache_codecs.h"

namespace kve {
namespace {

constexpr bool is_blank(char c) { return c == ' ' || c == '\t'; }
constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

// What may stand in a name, key or value: anything but the signs and blanks.
constexpr bool is_word(char c) {
  return !is_blank(c) && kSpecSigns.find(c) == std::string_view::npos;
}

}  // namespace

void SpecWords::fail(size_t at, const std::string& what) const {
  throw ConfigError(message("cache spec ", quoted(text_), ", character ", at + 1, ": ", what));
}

void SpecWords::skip_blanks() {
  while (at_ < text_.size() && is_blank(text_[at_])) ++at_;
}

bool SpecWords::take(char sign) {
  skip_blanks();
  if (at_ == text_.size() || text_[at_] != sign) return false;
  ++at_;
  return true;
}

SpecWord SpecWords::word(std::string_view what) {
  skip_blanks();
  const size_t begin = at_;
  while (at_ < text_.size() && is_word(text_[at_])) ++at_;
  if (at_ == begin) {
    const std::string found = at_end() ? std::string("the end") : quoted(next());
    fail(begin, message("expected ", what, ", found ", found));
  }
  return {text_.substr(begin, at_ - begin), begin};
}

int SpecWords::number(const SpecWord& key, const SpecWord& word, int low, int high) const {
  int value = 0;
  const char* end = word.text.data() + word.text.size();
  // from_chars would take a sign.
  const bool digits = !word.text.empty() && is_digit(word.text[0]);
  const auto [stop, error] = std::from_chars(word.text.data(), end, value);
  if (!digits || error != std::errc{} || stop != end || value < low || value > high) {
    fail(word.at, message(key.text, ": expected a whole number from ", low, " to ", high,
                          ", found ", quoted(word.text)));
  }
  return value;
}

std::vector<int> SpecWords::numbers(const SpecWord& key, const SpecWord& word, size_t most, int low,
                                    int high) const {
  std::vector<int> out;
  for (size_t begin = 0; begin <= word.text.size();) {
    if (out.size() == most) {
      fail(word.at,
           message(key.text, ": expected at most ", most, " numbers, found ", quoted(word.text)));
    }
    const size_t end = std::min(word.text.find('x', begin), word.text.size());
    out.push_back(number(key, {word.text.substr(begin, end - begin), word.at + begin}, low, high));
    begin = end + 1;
  }
  return out;
}

int SpecWords::pages(const SpecWord& key, const SpecWord& word) const {
  const int value = number(key, word, kPageTokens, 65536);
  if (value % kPageTokens == 0) return value;
  fail(word.at,
       message(key.text, ": expected a multiple of ", kPageTokens, ", found ", quoted(word.text)));
}

int SpecWords::thousandths(const SpecWord& key, const SpecWord& word) const {
  const std::string_view text = word.text;
  const size_t n = text.starts_with("0.") ? text.size() - 2 : 0;
  int value = 0;
  bool valid = n >= 1 && n <= 3;
  for (size_t i = 0; valid && i < 3; ++i) {
    const char digit = i < n ? text[2 + i] : '0';
    valid = digit >= '0' && digit <= '9';
    value = 10 * value + (digit - '0');
  }
  if (valid && value > 0) return value;
  fail(word.at, message(key.text,
                        ": expected a share like 0.4, above 0 and below 1 with at most 3 "
                        "digits, found ",
                        quoted(text)));
}

int SpecWords::group_of(const SpecWord& word) const {
  if (word.text == "head") return kWholeHead;
  if (word.text == "row") return kWholeRow;
  for (const int allowed : kCacheGroups) {
    if (word.text == std::to_string(allowed)) return allowed;
  }
  fail(word.at,
       message("group: expected 8, 16, 32, 64, 128, head or row, found ", quoted(word.text)));
}

int SpecWords::per_cent(const SpecWord& key, const SpecWord& word, int most) const {
  if (word.text.ends_with('%')) {
    return number(key, {word.text.substr(0, word.text.size() - 1), word.at}, 0, most);
  }
  fail(word.at, message(key.text, ": expected a share like 1%, found ", quoted(word.text)));
}

std::pair<int, int> SpecWords::range(const SpecWord& key, const SpecWord& value, int count) const {
  const size_t dash = value.text.find('-');
  const SpecWord from{value.text.substr(0, dash), value.at};
  const size_t skipped = dash == std::string_view::npos ? 0 : dash + 1;
  const SpecWord to{value.text.substr(skipped), value.at + skipped};
  const int begin = number(key, from, 0, count - 1);
  return {begin, 1 + number(key, to, begin, count - 1)};
}

}  // namespace kve
