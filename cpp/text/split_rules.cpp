#include "text/split_rules.h"

#include <algorithm>

namespace kve {
namespace {

using namespace unicode;  // NOLINT(google-build-using-namespace): the Property names

constexpr CharSet kSpaces{.properties = kSpace};

}  // namespace

size_t Fragment::skip(const CharSet& set, size_t pos, size_t most) const {
  const size_t limit = most < end - pos ? pos + most : end;
  while (pos < limit && set.has(text_[pos], properties_[pos])) ++pos;
  return pos;
}

const Fragment::Run& Fragment::space_run(size_t pos) {
  Run& run = space_run_;
  if (pos < run.begin || pos >= run.end) {
    run = {pos, skip(kSpaces, pos), 0};
    for (size_t i = run.end; i > pos && run.after_newline == 0; --i) {
      if (is(kNewline, i - 1)) run.after_newline = i;
    }
  }
  return run;
}

const Fragment::Run& Fragment::run_of(const CharSet& set, size_t pos) {
  if (pos < other_run_.begin || pos >= other_run_.end) other_run_ = {pos, skip(set, pos), 0};
  return other_run_;
}

size_t match_run(const Rule& rule, Fragment& text, size_t pos) {
  const auto match_from = [&](size_t start) {
    const size_t body_end = text.skip(rule.body, start, rule.most);
    if (body_end - start < rule.least) return kNoMatch;
    return text.skip(rule.tail, body_end, rule.tail_most);
  };
  if (text.in(rule.lead, pos)) {
    const size_t match = match_from(pos + 1);
    if (match != kNoMatch) return match;
  }
  return rule.lead_required ? kNoMatch : match_from(pos);
}

size_t match_contraction(const Rule& rule, Fragment& text, size_t pos) {
  if (text.end - pos < 2 || text.at(pos) != U'\'') return kNoMatch;
  const auto letter = [&](size_t i) -> char32_t {
    if (i >= text.end) return 0;
    const char32_t c = text.at(i);
    if (!rule.flag) return c;
    return c == 0x17F ? U's' : to_lower(c);  // the long s is an s to a regex that ignores case
  };
  const char32_t first = letter(pos + 1), second = letter(pos + 2);
  if (first == U's' || first == U't' || first == U'm' || first == U'd') return pos + 2;
  const bool two =
      ((first == U'r' || first == U'v') && second == U'e') || (first == U'l' && second == U'l');
  return two ? pos + 3 : kNoMatch;
}

size_t match_spaces_to_newline(const Rule&, Fragment& text, size_t pos) {
  if (!text.is(kSpace, pos)) return kNoMatch;
  const size_t end = text.space_run(pos).after_newline;
  return end > pos ? end : kNoMatch;
}

size_t match_spaces_before_last(const Rule&, Fragment& text, size_t pos) {
  if (!text.is(kSpace, pos)) return kNoMatch;
  const size_t end = text.space_run(pos).end;
  if (end == text.end) return end;
  return end - pos > 1 ? end - 1 : kNoMatch;
}

size_t match_trailing_spaces(const Rule&, Fragment& text, size_t pos) {
  return text.is(kSpace, pos) && text.space_run(pos).end == text.end ? text.end : kNoMatch;
}

size_t match_spaces_in_powers(const Rule&, Fragment& text, size_t pos) {
  if (!text.is(kSpace, pos)) return kNoMatch;
  const Fragment::Run& run = text.space_run(pos);
  // The last space before a word may not end a longer group.
  const size_t usable = run.end - pos - (run.end == text.end ? 0 : 1);
  for (size_t power = 512; power >= 4; power /= 2) {
    if (usable >= power) return pos + power;
  }
  return pos + std::clamp<size_t>(usable, 1, 2);
}

namespace {

// What follows the optional lead of a cased word; kNoMatch if nothing does.
size_t match_cased_letters(const Rule& rule, const Fragment& text, size_t start,
                           bool lower_needed) {
  const auto in = [&](uint16_t properties, size_t pos) {
    return text.is(properties, pos) && !text.in(rule.tail, pos);
  };
  constexpr uint16_t kAsUpper = kUpper | kOtherLetter | kMark;
  constexpr uint16_t kAsLower = kLower | kOtherLetter | kMark;
  size_t upper_end = start;
  while (in(kAsUpper, upper_end)) ++upper_end;
  size_t end = upper_end;
  while (in(kAsLower, end)) ++end;
  if (end > upper_end) return end;
  if (!lower_needed) return upper_end > start ? upper_end : kNoMatch;
  // The upper-case part gives back its last character that passes as lower case.
  while (end > start && !in(kAsLower, end - 1)) --end;
  return end > start ? end : kNoMatch;
}

}  // namespace

size_t match_cased_word(const Rule& rule, Fragment& text, size_t pos) {
  size_t end = kNoMatch;
  for (const bool lower_needed : {true, false}) {
    if (text.in(rule.lead, pos)) end = match_cased_letters(rule, text, pos + 1, lower_needed);
    if (end == kNoMatch) end = match_cased_letters(rule, text, pos, lower_needed);
    if (end != kNoMatch) break;
  }
  if (end == kNoMatch || !rule.flag) return end;
  const size_t contraction = match_contraction(rule, text, end);
  return contraction == kNoMatch ? end : contraction;
}

size_t match_phrase(const Rule& rule, Fragment& text, size_t pos) {
  size_t start = text.in(rule.lead, pos) && text.is(kLetter, pos + 1) ? pos + 1 : pos;
  if (!text.is(kLetter, start)) return kNoMatch;
  while (true) {
    while (text.is(kLetter | kMark, start)) ++start;
    if (!text.is(kBlank, start) || !text.is(kLetter, start + 1)) return start;
    ++start;
  }
}

size_t match_groups_of_three(const Rule& rule, Fragment& text, size_t pos) {
  if (!text.in(rule.body, pos)) return kNoMatch;
  const size_t end = text.run_of(rule.body, pos).end;
  if (text.in(rule.tail, end)) return kNoMatch;
  const size_t rest = (end - pos) % 3;
  return pos + (rest == 0 ? 3 : rest);
}

size_t match_to_thousands(const Rule& rule, Fragment& text, size_t pos) {
  size_t end = pos + 1;
  while (end < text.end &&
         !(text.in(rule.body, end) && (text.run_of(rule.body, end).end - end) % 3 == 0)) {
    ++end;
  }
  return end;
}

size_t match_sentinel(const Rule&, Fragment& text, size_t pos) {
  constexpr std::u32string_view kOpening = U"<sentinel:";
  if (!text.starts_with(kOpening, pos)) return kNoMatch;
  const size_t digits = pos + kOpening.size();
  size_t end = digits;
  while (end < text.end && text.at(end) >= U'0' && text.at(end) <= U'9') ++end;
  return end > digits && text.starts_with(U">", end) ? end + 1 : kNoMatch;
}

size_t match_image_code(const Rule&, Fragment& text, size_t pos) {
  constexpr std::u32string_view kOpening = U"IMGIMG";
  if (!text.starts_with(kOpening, pos)) return kNoMatch;
  const size_t letters = pos + kOpening.size();
  size_t end = letters;
  while (end < text.end && end < letters + 4 && text.at(end) >= U'A' && text.at(end) <= U'I') ++end;
  return end > letters && text.starts_with(U"Z", end) ? end + 1 : kNoMatch;
}

size_t match_indentation(const Rule&, Fragment& text, size_t pos) {
  if (text.at(pos) == U'\t' || text.at(pos) == U'\n') return pos + 1;
  for (const std::u32string_view spaces : {U"    ", U"  "}) {
    if (text.starts_with(spaces, pos)) return pos + spaces.size();
  }
  return kNoMatch;
}

void cut(const Stage& stage, std::u32string_view text, std::span<const uint16_t> properties,
         size_t begin, size_t end, std::vector<uint32_t>& ends) {
  Fragment fragment(text, properties, begin, end);
  const auto emit = [&ends](size_t word_end) { ends.push_back(static_cast<uint32_t>(word_end)); };
  size_t word = begin;  // the first character that belongs to no word yet
  for (size_t pos = begin; pos < end;) {
    size_t match = kNoMatch;
    for (const Rule& rule : stage) {
      match = rule.match(rule, fragment, pos);
      if (match != kNoMatch) break;
    }
    if (match == kNoMatch) {
      ++pos;
      continue;
    }
    if (word < pos) emit(pos);
    emit(match);
    word = pos = match;
  }
  if (word < end) emit(end);
}

}  // namespace kve
