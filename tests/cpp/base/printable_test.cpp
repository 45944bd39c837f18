#include "base/printable.h"

#include <gtest/gtest.h>

#include <iomanip>  // std::quoted must not be chosen
#include <string>

#include "base/error.h"

namespace kve {
namespace {

TEST(Printable, KeepsTextAndEscapesWhatBreaksALine) {
  EXPECT_EQ(printable("blk.0.attn_q.weight"), "blk.0.attn_q.weight");
  EXPECT_EQ(printable("a\nb\tc\rd"), "a\\nb\\tc\\x0dd");
  EXPECT_EQ(printable("it's \\"), "it\\'s \\\\");
  EXPECT_EQ(printable(std::string_view("\0\x7f", 2)), "\\x00\\x7f");
}

TEST(Printable, QuotesEveryKindOfString) {
  std::string text = "x\n";
  const std::string constant = text;
  EXPECT_EQ(message(quoted("x\n")), "'x\\n'");
  EXPECT_EQ(message(quoted(text)), "'x\\n'");
  EXPECT_EQ(message(quoted(constant)), "'x\\n'");
  EXPECT_EQ(message(quoted(std::string(text))), "'x\\n'");
  EXPECT_EQ(message(quoted(std::string_view(text))), "'x\\n'");
  EXPECT_EQ(quoted("abcdef", 3), "'abc...'");
}

TEST(Printable, KeepsWellFormedUtf8Only) {
  EXPECT_EQ(printable("J\xc3\xb6rg \xe4\xb8\xad \xf0\x9f\x98\x80"),
            "J\xc3\xb6rg \xe4\xb8\xad \xf0\x9f\x98\x80");
  EXPECT_EQ(printable("\xc3"), "\\xc3");           // cut short
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");  // overlong
  EXPECT_EQ(printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // above U+10FFFF
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\xc2\x85"), "\\xc2\\x85");           // U+0085, a line break
  EXPECT_EQ(printable("\xe2\x80\xa8"), "\\xe2\\x80\\xa8");  // U+2028, a line separator
  EXPECT_EQ(printable("\xe2\x80\xae"), "\\xe2\\x80\\xae");  // U+202E, reverses the line
}

TEST(Printable, CutsLongText) {
  EXPECT_EQ(printable("abcdef", 6), "abcdef");
  EXPECT_EQ(printable("abcdefg", 6), "abcdef...");
  EXPECT_EQ(printable("ab\xe4\xb8\xad"
                      "d",
                      3),
            "ab\xe4\xb8\xad...");  // never inside a character
  EXPECT_EQ(printable(std::string(1000000, '\n')).size(), 2u * 80 + 3);
}

}  // namespace
}  // namespace kve
