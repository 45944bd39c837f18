#include <gtest/gtest.h>

#include "base/error.h"
#include "text/charsmap.h"
#include "text/vocabularies.h"

namespace kve::testing {
namespace {

// <unk>, </s>, then `pieces` (from 2).
Vocabulary unigram(std::initializer_list<std::pair<std::string_view, float>> pieces) {
  Vocabulary out;
  out.model = "t5";
  out.special.unk = add_piece(out, "<unk>", 0, TokenKind::unknown);
  out.special.eos = add_piece(out, "</s>", 0, TokenKind::control);
  for (const auto& [piece, score] : pieces) add_piece(out, std::string(piece), score);
  return out;
}

TEST(Unigram, TakesTheLargestSumOfScores) {
  const auto tokenizer = Tokenizer::create(
      unigram({{"a", -2}, {"b", -2}, {"c", -2}, {"ab", -3}, {"bc", -1.5f}, {"abc", -4}}));
  EXPECT_EQ(tokenizer->encode("abc", kPlain), (Tokens{2, 6}));  // -3.5, better than -4 and -5
  EXPECT_EQ(tokenizer->encode("ab", kPlain), (Tokens{5}));
}

TEST(Unigram, NeighbouringUnknownCharactersAreOneToken) {
  const auto tokenizer = Tokenizer::create(unigram({{"a", -2}}));
  EXPECT_EQ(tokenizer->encode("aé€a", kPlain), (Tokens{2, 0, 2}));
  EXPECT_EQ(tokenizer->encode("é", kPlain), (Tokens{0}));
}

TEST(Unigram, AnUnknownCharacterCostsTenMoreThanTheWorstPiece) {
  // Two pieces of -6 against one unknown character at -16 and one piece.
  const auto tokenizer =
      Tokenizer::create(unigram({{"aé", -100}, {"a", -1}, {"b", -6}, {"ab", -12.5f}}));
  EXPECT_EQ(tokenizer->encode("aé", kPlain), (Tokens{2}));  // -100 > -1 - 110
  EXPECT_EQ(tokenizer->encode("ab", kPlain), (Tokens{3, 4}));
}

TEST(Unigram, AddsEosAsT5Does) {
  const auto tokenizer = Tokenizer::create(unigram({{"a", -2}}));
  EXPECT_EQ(tokenizer->encode("a"), (Tokens{2, 1}));
  EXPECT_EQ(tokenizer->encode(""), (Tokens{1}));
}

TEST(Unigram, SpaceFlags) {
  Vocabulary vocabulary = unigram({{"a", -2}, {"▁", -2}, {"▁a", -1}, {" ", -2}});
  const auto encode = [&](std::string_view text) {
    return Tokenizer::create(vocabulary)->encode(text, kPlain);
  };
  EXPECT_EQ(encode("a  a "), (Tokens{2, 3, 4, 3}));
  vocabulary.add_space_prefix = true;
  EXPECT_EQ(encode("a  a "), (Tokens{4, 3, 4, 3}));
  EXPECT_EQ(Tokenizer::create(vocabulary)->decode(Tokens{4, 3, 4}), "a  a");
  vocabulary.remove_extra_whitespaces = true;
  EXPECT_EQ(encode("  a  a "), (Tokens{4, 4}));
  EXPECT_EQ(encode("   "), Tokens{});
  vocabulary.escape_whitespaces = false;
  EXPECT_EQ(encode("a a"), (Tokens{5, 2, 5, 2}));
}

TEST(Unigram, NeedsAnUnknownToken) {
  Vocabulary vocabulary = unigram({{"a", -2}});
  vocabulary.special.unk = kNoToken;
  EXPECT_THROW(Tokenizer::create(vocabulary), FormatError);
}

// A charsmap that maps "A" to "a" and "AB" to "x ", written by hand: units of the double array are
// label | has_value << 8 | offset << 10; a value's unit has bit 31 set.
std::string little_charsmap() {
  constexpr uint32_t kValue = 1u << 31, kLeaf = 1u << 8;
  std::vector<uint32_t> units(512);
  units[0] = 256u << 10;  // the root's children are at 256 ^ byte
  // 'A' = 0x41 at 256 ^ 0x41 = 321; its own children are at 321 ^ 128 = 449 ^ byte.
  units[321] = 0x41 | kLeaf | 128u << 10;
  units[449] = kValue | 0;  // the value of "A": the replacement at offset 0
  // 'B' = 0x42 at 449 ^ 0x42 = 387, children at 387 ^ 64 = 451.
  units[387] = 0x42 | kLeaf | 64u << 10;
  units[451] = kValue | 2;
  std::string out;
  const auto put = [&out](uint32_t number) {
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(number >> (8 * i)));
  };
  put(static_cast<uint32_t>(units.size() * 4));
  for (const uint32_t unit : units) put(unit);
  out += std::string("a\0x \0", 5);
  return out;
}

std::string normalized(const Charsmap& charsmap, std::string_view text) {
  std::string out;
  charsmap.normalize(text, out);
  return out;
}

TEST(Charsmap, ReplacesTheLongestMatch) {
  const Charsmap charsmap(little_charsmap());
  EXPECT_EQ(normalized(charsmap, "AzABA"), "azx a");
  EXPECT_EQ(normalized(charsmap, "é€"), "é€");
  EXPECT_EQ(normalized(charsmap, std::string_view("A\0A", 3)), std::string("a\0a", 3));
  EXPECT_EQ(normalized(charsmap,
                       "\xFF"
                       "A\xE2"),
            "\xEF\xBF\xBD"
            "a\xEF\xBF\xBD");
  EXPECT_EQ(normalized(Charsmap(""), "AB"), "AB");
}

TEST(Charsmap, NormalizesBeforeUnigram) {
  Vocabulary vocabulary = unigram({{"a", -2}, {"x", -2}, {"▁", -2}});
  vocabulary.precompiled_charsmap = little_charsmap();
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("AAB", kPlain), (Tokens{2, 3, 4}));
}

TEST(Charsmap, MalformedTablesAreRefused) {
  const std::string good = little_charsmap();
  // Cut anywhere: the sizes do not fit, or a replacement has no end or is not there.
  for (size_t size = 1; size < good.size(); ++size) {
    EXPECT_THROW(Charsmap(good.substr(0, size)), FormatError) << size;
  }
  // Every unit replaced by garbage: refused or harmless, never out of bounds.
  for (size_t unit = 0; unit < 512; ++unit) {
    for (const char garbage : {'\xFF', '\x7F', '\x41'}) {
      std::string bad = good;
      for (size_t i = 0; i < 4; ++i) bad[4 + unit * 4 + i] = garbage;
      try {
        normalized(Charsmap(bad), "AB\x01\xFF\x41\x42 zAB");
      } catch (const FormatError&) {
      }
    }
  }
}

}  // namespace
}  // namespace kve::testing
