#include "text/unicode.h"

#include <gtest/gtest.h>

namespace kve::unicode {
namespace {

TEST(Unicode, CategoriesOfOneCharacterEach) {
  const std::pair<char32_t, int> expected[] = {{U'A', kUpper},
                                               {0x1C5, kUpper} /* titlecase */,
                                               {U'z', kLower},
                                               {0x2B0, kOtherLetter},
                                               {0x4E00, kOtherLetter | kHan},
                                               {0x3005, kOtherLetter | kHan},
                                               {0x301, kNonspacing},
                                               {0x93E, kOtherMark},
                                               {0x20DD, kOtherMark},
                                               {U'7', kDecimal},
                                               {0x1D7D8, kDecimal},
                                               {0xBD, kOtherNumber},
                                               {0x2167, kOtherNumber},
                                               {U'!', kPunctuation},
                                               {0x3001, kPunctuation},
                                               {U'$', kSymbol},
                                               {0x1F680, kSymbol},
                                               {0xA0, kSeparator | kSpace},
                                               {0x2028, kSeparator | kSpace},
                                               {U'\t', kControl | kSpace},
                                               {0x85, kControl | kSpace},
                                               {0x1C, kControl},
                                               {0x200B, kControl},
                                               {0xE000, kControl},
                                               {U'\n', kControl | kSpace | kNewline},
                                               {U' ', kSeparator | kSpace | kBlank},
                                               {0x378, 0},
                                               {0x10FFFF, 0},
                                               {0x110000, 0},
                                               {0xFFFFFFFF, 0}};
  for (const auto& [c, properties_of_c] : expected) {
    EXPECT_EQ(properties(c), properties_of_c) << std::hex << "U+" << static_cast<uint32_t>(c);
  }
}

TEST(Unicode, EveryCodePointHasAtMostOneCategory) {
  constexpr int kCategories =
      kLetter | kMark | kNumber | kPunctuation | kSymbol | kSeparator | kControl;
  // Counts of Unicode 15.1 (DerivedGeneralCategory.txt): all, and some categories.
  size_t letters = 0, marks = 0, numbers = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    const int category = properties(c) & kCategories;
    ASSERT_EQ(category & (category - 1), 0) << std::hex << static_cast<uint32_t>(c);
    letters += (category & kLetter) != 0;
    marks += (category & kMark) != 0;
    numbers += (category & kNumber) != 0;
  }
  EXPECT_EQ(letters, 136726u);
  EXPECT_EQ(marks, 2450u);
  EXPECT_EQ(numbers, 1831u);
}

TEST(Unicode, LowerCase) {
  EXPECT_EQ(to_lower(U'A'), U'a');
  EXPECT_EQ(to_lower(U'['), U'[');
  EXPECT_EQ(to_lower(0xC0), char32_t{0xE0});
  EXPECT_EQ(to_lower(0xD7), char32_t{0xD7});  // the multiplication sign amid letters
  EXPECT_EQ(to_lower(0x100), char32_t{0x101});
  EXPECT_EQ(to_lower(0x101), char32_t{0x101});
  EXPECT_EQ(to_lower(0x130), U'i');
  EXPECT_EQ(to_lower(0x1C4), char32_t{0x1C6});
  EXPECT_EQ(to_lower(0x410), char32_t{0x430});
  EXPECT_EQ(to_lower(0x10400), char32_t{0x10428});
  EXPECT_EQ(to_lower(0x1E943), char32_t{0x1E943});
  EXPECT_EQ(to_lower(0x110000), char32_t{0x110000});
}

TEST(Unicode, WithoutAccents) {
  const auto strip = [](char32_t c) {
    std::u32string out;
    append_without_accents(c, out);
    return out;
  };
  EXPECT_EQ(strip(U'e'), U"e");
  EXPECT_EQ(strip(0xE9), U"e");
  EXPECT_EQ(strip(0x1EA4), U"A");  // two accents
  EXPECT_EQ(strip(0x301), U"");
  EXPECT_EQ(strip(0x9CB), (std::u32string{0x9C7, 0x9BE}));  // spacing marks stay
  EXPECT_EQ(strip(0xF900), (std::u32string{0x8C48}));
  EXPECT_EQ(strip(0xAC00), (std::u32string{0x1100, 0x1161}));
  EXPECT_EQ(strip(0xAC01), (std::u32string{0x1100, 0x1161, 0x11A8}));
  EXPECT_EQ(strip(0xD7A3), (std::u32string{0x1112, 0x1175, 0x11C2}));
  EXPECT_EQ(strip(0x1D160), (std::u32string{0x1D158, 0x1D165, 0x1D16E}));
}

TEST(Unicode, DecodesAndEncodesEveryLength) {
  for (const char32_t c : {0x0u, 0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xFFFFu, 0x10000u, 0x10FFFFu}) {
    std::string text;
    append_utf8(c, text);
    size_t pos = 0;
    EXPECT_EQ(decode_lenient(text, pos), c);
    EXPECT_EQ(pos, text.size());
  }
}

TEST(Unicode, BrokenBytesBecomeOneReplacementEach) {
  EXPECT_EQ(decode_lenient("\x80"), U"\xFFFD");
  EXPECT_EQ(decode_lenient("a\xE2\x82"), U"a\xFFFD\xFFFD");
  EXPECT_EQ(decode_lenient("\xE2\x28\xA1"), U"\xFFFD(\xFFFD");
  EXPECT_EQ(decode_lenient("\xFFz"), U"\xFFFDz");
  EXPECT_EQ(decode_lenient("\xF4\x90\x80\x80"), U"\xFFFD\xFFFD\xFFFD\xFFFD");
  // Only the shape is checked: surrogates are read as they are spelled.
  EXPECT_EQ(decode_lenient("\xED\xA0\x80"), (std::u32string{0xD800}));
}

}  // namespace
}  // namespace kve::unicode
