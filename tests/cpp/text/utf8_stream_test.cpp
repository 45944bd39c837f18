#include <gtest/gtest.h>

#include "text/tokenizer.h"

namespace kve {
namespace {

// U+FFFD
#define REPLACEMENT "\xEF\xBF\xBD"

std::string at_once(std::string_view bytes) {
  Utf8Stream stream;
  std::string out = stream.push(bytes);
  return out + stream.flush();
}

// In pieces of `size` bytes, checking that every returned part is well-formed.
std::string in_pieces(std::string_view bytes, size_t size) {
  Utf8Stream stream;
  std::string out;
  for (size_t pos = 0; pos < bytes.size(); pos += size) {
    const std::string part = stream.push(bytes.substr(pos, size));
    EXPECT_EQ(at_once(part), part) << "a part is ill-formed";
    out += part;
  }
  return out + stream.flush();
}

TEST(Utf8Stream, WaitsForTheRestOfASequence) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.push("\x9A"), "");
  EXPECT_EQ(stream.push("\x80"
                        "b"),
            "\xF0\x9F\x9A\x80"
            "b");
  EXPECT_EQ(stream.flush(), "");
}

TEST(Utf8Stream, ReplacesMaximalParts) {
  // The example of the Unicode standard, table 3-8.
  EXPECT_EQ(at_once("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a" REPLACEMENT REPLACEMENT REPLACEMENT "b" REPLACEMENT "c" REPLACEMENT REPLACEMENT
            "d");
  // Overlong forms, surrogates and values above U+10FFFF: table 3-9 to 3-11.
  EXPECT_EQ(at_once("\xC0\xAF"), REPLACEMENT REPLACEMENT);
  EXPECT_EQ(at_once("\xE0\x80\xBF"), REPLACEMENT REPLACEMENT REPLACEMENT);
  EXPECT_EQ(at_once("\xED\xA0\x80"), REPLACEMENT REPLACEMENT REPLACEMENT);
  EXPECT_EQ(at_once("\xF4\x91\x92\x93\xFF\x41"),
            REPLACEMENT REPLACEMENT REPLACEMENT REPLACEMENT REPLACEMENT "A");
}

TEST(Utf8Stream, AnUnfinishedEndBecomesOneReplacement) {
  EXPECT_EQ(at_once("a\xE2\x82"), "a" REPLACEMENT);
  EXPECT_EQ(at_once("\xF0\x9F\x9A"), REPLACEMENT);
  EXPECT_EQ(at_once("\xC3"), REPLACEMENT);
  EXPECT_EQ(at_once(""), "");
}

TEST(Utf8Stream, CutsMakeNoDifference) {
  std::string bytes;
  for (uint32_t i = 0, x = 7; i < 5000; ++i, x = x * 1664525 + 1013904223) {
    // Mostly lead and continuation bytes.
    bytes.push_back(static_cast<char>(x % 5 == 0 ? x >> 24 : 0x80 | (x >> 24)));
  }
  bytes += "é€🚀";
  const std::string whole = at_once(bytes);
  for (const size_t size : {1, 2, 3, 4, 5, 7, 64}) EXPECT_EQ(in_pieces(bytes, size), whole);
}

TEST(Utf8Stream, CanBeUsedAgainAfterFlush) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xE2"), "");
  EXPECT_EQ(stream.flush(), REPLACEMENT);
  EXPECT_EQ(stream.push("\x82"
                        "a"),
            REPLACEMENT "a");
}

}  // namespace
}  // namespace kve
