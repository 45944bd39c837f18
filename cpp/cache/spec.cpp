#include "cache/spec.h"

#include <charconv>
#include <optional>

#include "base/error.h"
#include "base/printable.h"
#include "cache/registry.h"

namespace kve {
namespace {

constexpr bool is_blank(char c) { return c == ' ' || c == '\t'; }
constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

// What may stand in a name, key or value: anything but the signs and blanks.
constexpr bool is_word(char c) {
  return !is_blank(c) && c != '+' && c != ':' && c != ',' && c != '=';
}

// A word of the text and where it begins.
struct Word {
  std::string_view text;
  size_t at = 0;
};

struct Parameter {
  Word key;
  Word value;
};

struct Sides {
  std::optional<SideSpec> k;
  std::optional<SideSpec> v;
};

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  CacheSpec parse() {
    Sides found;
    do {
      stage(&found);
    } while (take('+'));
    if (at_ < text_.size()) {
      fail(at_, "expected '+' or the end, found " + quoted(text_.substr(at_, 1)));
    }
    CacheSpec spec;
    if (found.k) spec.k = *found.k;
    if (found.v) spec.v = *found.v;
    return spec;
  }

 private:
  [[noreturn]] void fail(size_t at, const std::string& what) const {
    throw ConfigError(message("cache spec ", quoted(text_), ", character ", at + 1, ": ", what));
  }

  void skip_blanks() {
    while (at_ < text_.size() && is_blank(text_[at_])) ++at_;
  }

  bool take(char sign) {
    skip_blanks();
    if (at_ == text_.size() || text_[at_] != sign) return false;
    ++at_;
    return true;
  }

  Word word(std::string_view what) {
    skip_blanks();
    const size_t begin = at_;
    while (at_ < text_.size() && is_word(text_[at_])) ++at_;
    if (at_ == begin) {
      const std::string found =
          at_ < text_.size() ? quoted(text_.substr(at_, 1)) : std::string("the end");
      fail(begin, message("expected ", what, ", found ", found));
    }
    return {text_.substr(begin, at_ - begin), begin};
  }

  void stage(Sides* found) {
    Word name = word("the name of a cache");
    bool k = true;
    bool v = true;
    if (take('=')) {
      if (name.text != "k" && name.text != "v") {
        fail(name.at, message("expected k= or v= before a name, found ", quoted(name.text), "="));
      }
      k = name.text == "k";
      v = !k;
      name = word("the name of a cache");
    }
    const std::vector<Parameter> given = parameters();
    const CacheSpec spec = resolve(name, given);
    if ((k && found->k) || (v && found->v)) {
      fail(name.at, message(quoted(name.text), " is a second choice for the ",
                            k && found->k ? "keys" : "values"));
    }
    if (k) found->k = spec.k;
    if (v) found->v = spec.v;
  }

  std::vector<Parameter> parameters() {
    std::vector<Parameter> out;
    if (!take(':')) return out;
    do {
      const Word key = word("the name of a parameter");
      if (!take('=')) fail(at_, message("expected '=' after ", quoted(key.text)));
      const Word value = word("a value");
      for (const Parameter& earlier : out) {
        if (earlier.key.text == key.text) {
          fail(key.at, message("parameter ", quoted(key.text), " is given twice"));
        }
      }
      out.push_back({key, value});
    } while (take(','));
    return out;
  }

  CacheSpec resolve(const Word& name, const std::vector<Parameter>& given) const {
    if (const CacheCodec* entry = find_codec(name.text)) {
      const SideSpec side = coded_side(*entry, given);
      return {side, side};
    }
    if (const CachePreset* preset = find_preset(name.text)) {
      if (!given.empty()) {
        fail(given[0].key.at, message("the preset ", preset->name,
                                      " has no parameters; it stands for ", preset->spec));
      }
      return Parser(preset->spec).parse();
    }
    const std::string_view nearest = nearest_cache_name(name.text);
    const std::string hint = nearest.empty() ? "" : message("; did you mean ", nearest, "?");
    fail(name.at,
         message("unknown name ", quoted(name.text), "; known: ", known_cache_names(), hint));
  }

  SideSpec coded_side(const CacheCodec& entry, const std::vector<Parameter>& given) const {
    SideSpec side{{entry.id, entry.default_group}, entry.default_tail};
    for (const auto& [key, value] : given) {
      if (key.text == "group" && entry.group_is_free) {
        side.codec.group = group_of(value);
      } else if (key.text == "tail" && !entry.is_float()) {
        side.tail = tail_of(value);
      } else {
        const std::string_view known = entry.group_is_free ? "known: group, tail"
                                       : entry.is_float()  ? "it has none"
                                                           : "known: tail";
        fail(key.at, message(entry.name, " has no parameter ", quoted(key.text), "; ", known));
      }
    }
    return side;
  }

  int group_of(const Word& word) const {
    for (const int allowed : kCacheGroups) {
      if (word.text == std::to_string(allowed)) return allowed;
    }
    fail(word.at, message("group: expected 8, 16, 32, 64 or 128, found ", quoted(word.text)));
  }

  int tail_of(const Word& word) const {
    int value = 0;
    const char* end = word.text.data() + word.text.size();
    // from_chars would take a sign.
    const bool digits = is_digit(word.text[0]);
    const auto [stop, error] = std::from_chars(word.text.data(), end, value);
    if (!digits || error != std::errc{} || stop != end || value > kMaxTail) {
      fail(word.at, message("tail: expected a whole number from 0 to ", kMaxTail, ", found ",
                            quoted(word.text)));
    }
    return value;
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

std::string SideSpec::str() const {
  const CacheCodec& entry = kve::codec(codec.id);
  std::string out(entry.name);
  char sign = ':';
  const auto add = [&](std::string_view key, int value) {
    out += sign;
    out += message(key, '=', value);
    sign = ',';
  };
  if (entry.group_is_free) add("group", codec.group);
  if (tail != 0 || entry.default_tail != 0) add("tail", tail);
  return out;
}

CacheSpec CacheSpec::parse(std::string_view text) {
  if (text.size() > kMaxSpecLength) {
    throw ConfigError(message("cache spec: expected at most ", kMaxSpecLength,
                              " characters, found ", text.size()));
  }
  return Parser(text).parse();
}

std::string CacheSpec::str() const {
  return k == v ? k.str() : message("k=", k.str(), "+v=", v.str());
}

}  // namespace kve
