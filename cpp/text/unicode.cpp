#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <map>

#include "text/unicode_data.h"

namespace kve::unicode {
namespace {

constexpr char32_t kCodePoints = 0x110000;
constexpr size_t kPageBits = 8;
constexpr size_t kPageSize = size_t{1} << kPageBits;

// In the order of CATEGORIES in make_unicode_tables.py.
constexpr std::array<uint16_t, 12> kCategoryProperty = {
    0,        kUpper,       kLower,       kOtherLetter, kNonspacing, kOtherMark,
    kDecimal, kOtherNumber, kPunctuation, kSymbol,      kSeparator,  kControl};

struct Range {
  char32_t first, last;
};
constexpr Range kSpaces[] = {{0x09, 0x0D},     {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},
                             {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                             {0x205F, 0x205F}, {0x3000, 0x3000}};
// The script Han: ideographs, radicals and marks like U+3005.
constexpr Range kHanRanges[] = {
    {0x2E80, 0x2E99},   {0x2E9B, 0x2EF3},   {0x2F00, 0x2FD5},   {0x3005, 0x3005},
    {0x3007, 0x3007},   {0x3021, 0x3029},   {0x3038, 0x303B},   {0x3400, 0x4DBF},
    {0x4E00, 0x9FFF},   {0xF900, 0xFA6D},   {0xFA70, 0xFAD9},   {0x16FE2, 0x16FE3},
    {0x16FF0, 0x16FF1}, {0x20000, 0x2A6DF}, {0x2A700, 0x2B739}, {0x2B740, 0x2B81D},
    {0x2B820, 0x2CEA1}, {0x2CEB0, 0x2EBE0}, {0x2EBF0, 0x2EE5D}, {0x2F800, 0x2FA1D},
    {0x30000, 0x3134A}, {0x31350, 0x323AF}};

// Properties of all code points: an index of pages, equal pages stored once.
class PropertyTable {
 public:
  PropertyTable() {
    std::vector<uint16_t> all(kCodePoints);
    for (size_t run = 0; run < kCategoryRunCount; ++run) {
      const uint32_t end = run + 1 < kCategoryRunCount ? kCategoryRuns[run + 1] >> 4 : kCodePoints;
      std::fill(all.begin() + (kCategoryRuns[run] >> 4), all.begin() + end,
                kCategoryProperty[kCategoryRuns[run] & 15]);
    }
    add(all, kSpaces, kSpace);
    add(all, kHanRanges, kHan);
    all[U'\r'] |= kNewline;
    all[U'\n'] |= kNewline;
    all[U' '] |= kBlank;

    std::map<std::vector<uint16_t>, uint16_t> known;
    for (size_t page = 0; page < page_of_.size(); ++page) {
      const auto first = all.begin() + static_cast<ptrdiff_t>(page << kPageBits);
      const std::vector<uint16_t> content(first, first + kPageSize);
      const auto [it, added] = known.emplace(content, static_cast<uint16_t>(known.size()));
      if (added) pages_.insert(pages_.end(), content.begin(), content.end());
      page_of_[page] = it->second;
    }
  }

  uint16_t operator[](char32_t code_point) const {
    const size_t page = page_of_[code_point >> kPageBits];
    return pages_[(page << kPageBits) | (code_point & (kPageSize - 1))];
  }

 private:
  std::array<uint16_t, (kCodePoints >> kPageBits)> page_of_{};
  std::vector<uint16_t> pages_;

  template <size_t n>
  static void add(std::vector<uint16_t>& all, const Range (&ranges)[n], uint16_t property) {
    for (const Range& range : ranges) {
      for (char32_t c = range.first; c <= range.last; ++c) all[c] |= property;
    }
  }
};

constexpr char32_t kHangulFirst = 0xAC00, kHangulLast = 0xD7A3;
constexpr char32_t kLeadFirst = 0x1100, kVowelFirst = 0x1161, kTailBase = 0x11A7;
constexpr char32_t kVowels = 21, kTails = 28;

bool is_continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

}  // namespace

uint16_t properties(char32_t code_point) {
  static const PropertyTable table;
  return code_point < kCodePoints ? table[code_point] : uint16_t{0};
}

char32_t to_lower(char32_t code_point) {
  if (code_point < 0x80) {
    return code_point >= U'A' && code_point <= U'Z' ? code_point + 32 : code_point;
  }
  const uint64_t* end = kLowerCaseRuns + kLowerCaseRunCount;
  const uint64_t* run =
      std::upper_bound(kLowerCaseRuns, end, code_point,
                       [](char32_t c, uint64_t entry) { return c < (entry >> 43); });
  if (run == kLowerCaseRuns) return code_point;
  const uint64_t entry = *--run;
  const uint64_t offset = code_point - (entry >> 43);
  const uint64_t stride = ((entry >> 21) & 3) + 1;
  if (offset > ((entry >> 23) & 0xFFFFF) || offset % stride != 0) return code_point;
  return static_cast<char32_t>((entry & 0x1FFFFF) + offset);
}

void append_without_accents(char32_t code_point, std::u32string& out) {
  if (code_point >= kHangulFirst && code_point <= kHangulLast) {
    const char32_t index = code_point - kHangulFirst;
    out.push_back(kLeadFirst + index / (kVowels * kTails));
    out.push_back(kVowelFirst + index % (kVowels * kTails) / kTails);
    if (index % kTails != 0) out.push_back(kTailBase + index % kTails);
    return;
  }
  const uint64_t* end = kBaseLetters + kBaseLetterCount;
  const uint64_t* entry = std::lower_bound(
      kBaseLetters, end, code_point, [](uint64_t row, char32_t c) { return (row >> 42) < c; });
  if (entry == end || (*entry >> 42) != code_point) {
    if (!(properties(code_point) & kNonspacing)) out.push_back(code_point);
    return;
  }
  const char32_t first = (*entry >> 21) & 0x1FFFFF, second = *entry & 0x1FFFFF;
  if (first != 0) append_without_accents(first, out);
  if (second != 0) out.push_back(second);
}

size_t sequence_length(char lead_byte) {
  const uint8_t lead = static_cast<uint8_t>(lead_byte);
  return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

char32_t decode_lenient(std::string_view text, size_t& pos) {
  const uint8_t lead = static_cast<uint8_t>(text[pos]);
  const size_t length = sequence_length(text[pos]);
  ++pos;
  if (lead < 0x80) return lead;
  if (length == 1 || lead >= 0xF8 || text.size() - pos < length - 1) return kReplacement;
  char32_t code_point = lead & (0x7Fu >> length);
  for (size_t i = 0; i + 1 < length; ++i) {
    if (!is_continuation(text[pos + i])) return kReplacement;
    code_point = code_point << 6 | (static_cast<uint8_t>(text[pos + i]) & 0x3F);
  }
  if (code_point >= kCodePoints) return kReplacement;
  pos += length - 1;
  return code_point;
}

std::u32string decode_lenient(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) out.push_back(decode_lenient(text, pos));
  return out;
}

void append_utf8(char32_t code_point, std::string& out) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

}  // namespace kve::unicode
