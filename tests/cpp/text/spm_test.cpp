#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "text/vocabularies.h"

namespace kve::testing {
namespace {

Vocabulary without_space_prefix(Vocabulary vocabulary) {
  vocabulary.add_space_prefix = false;
  return vocabulary;
}

TEST(Spm, MergesTheBestScoreFirst) {
  const auto tokenizer = Tokenizer::create(
      without_space_prefix(spm({{"a", -9}, {"b", -9}, {"c", -9}, {"ab", -3}, {"bc", -2}})));
  EXPECT_EQ(tokenizer->encode("abc", kPlain), (Tokens{kSpmFirst, kSpmFirst + 4}));
  EXPECT_EQ(tokenizer->encode("abab", kPlain), (Tokens{kSpmFirst + 3, kSpmFirst + 3}));
}

TEST(Spm, EqualScoresMergeFromTheLeft) {
  const auto tokenizer =
      Tokenizer::create(without_space_prefix(spm({{"a", 0}, {"aa", -0.0f}, {"ba", 0.0f}})));
  EXPECT_EQ(tokenizer->encode("aaa", kPlain), (Tokens{kSpmFirst + 1, kSpmFirst}));
  // Zero and minus zero are equal.
  EXPECT_EQ(tokenizer->encode("baa", kPlain), (Tokens{kSpmFirst + 2, kSpmFirst}));
}

TEST(Spm, ScoresOrderAcrossSigns) {
  const auto tokenizer = Tokenizer::create(without_space_prefix(
      spm({{"a", 0}, {"b", 0}, {"c", 0}, {"ab", 1.5f}, {"bc", 2.5f}, {"ca", -1}})));
  EXPECT_EQ(tokenizer->encode("abca", kPlain), (Tokens{kSpmFirst, kSpmFirst + 4, kSpmFirst}));
  const auto infinite = Tokenizer::create(without_space_prefix(
      spm({{"a", 0}, {"b", 0}, {"ab", -std::numeric_limits<float>::infinity()}, {"ba", -1e30f}})));
  EXPECT_EQ(infinite->encode("aba", kPlain), (Tokens{kSpmFirst, kSpmFirst + 3}));
}

TEST(Spm, MarksSpacesAndTheFirstWord) {
  const auto tokenizer = Tokenizer::create(spm({{"▁", -5}, {"a", -5}, {"▁a", -1}, {"▁▁", -2}}));
  EXPECT_EQ(tokenizer->encode("a a", kPlain), (Tokens{kSpmFirst + 2, kSpmFirst + 2}));
  EXPECT_EQ(tokenizer->encode("  a", kPlain), (Tokens{kSpmFirst + 3, kSpmFirst + 2}));
  EXPECT_EQ(tokenizer->encode("", kPlain), Tokens{});
  EXPECT_EQ(tokenizer->encode(""), (Tokens{1}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a a")), "a a");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("  a")), "  a");
  EXPECT_EQ(tokenizer->decode(Tokens{kSpmFirst + 2}, {.remove_space_prefix = false}), " a");
  // A prefix belongs to the begin of the text: rendered specials come before it.
  EXPECT_EQ(tokenizer->decode(Tokens{1, kSpmFirst + 2}, {.render_special = true}), "<s> a");
}

TEST(Spm, SpellsUnknownBytes) {
  const auto tokenizer = Tokenizer::create(without_space_prefix(spm({{"a", 0}, {"▁", 0}})));
  // Byte b is token 3 + b; invalid UTF-8 is no different.
  EXPECT_EQ(tokenizer->encode("a\xC3\xA9", kPlain), (Tokens{kSpmFirst, 3 + 0xC3, 3 + 0xA9}));
  EXPECT_EQ(tokenizer->encode("\xFF"
                              "a\xE2\x82",
                              kPlain),
            (Tokens{3 + 0xFF, 3 + 'a', 3 + 0xE2, 3 + 0x82}));
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(all, kPlain)), all);
}

TEST(Spm, UnknownTokenWithoutByteTokens) {
  Vocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.add_space_prefix = false;
  add_piece(vocabulary, "a");
  EXPECT_THROW(Tokenizer::create(vocabulary), FormatError);
  vocabulary.special.unk = add_piece(vocabulary, "<unk>", 0, TokenKind::unknown);
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("ab", kPlain), (Tokens{0, 1}));
}

TEST(Spm, ControlTokensAreNotSpelledByText) {
  // Merging could reach "<s>" from "<s" and ">", but it is no text.
  const auto tokenizer =
      Tokenizer::create(without_space_prefix(spm({{"<", 0}, {"s", 0}, {">", 0}, {"<s", 0}})));
  EXPECT_EQ(tokenizer->encode("<s>", kPlain), (Tokens{kSpmFirst + 3, kSpmFirst + 2}));
  EXPECT_EQ(tokenizer->encode("<s>", kParse), (Tokens{1}));
}

TEST(Spm, AddsWhatTheFileAsksFor) {
  Vocabulary vocabulary = spm({{"▁a", 0}, {"a", 0}, {"▁", 0}});
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a"), (Tokens{1, kSpmFirst}));
  vocabulary.add_eos = true;
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a"), (Tokens{1, kSpmFirst, 2}));
  vocabulary.add_bos = false;
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a"), (Tokens{kSpmFirst, 2}));
  vocabulary.special.eos = kNoToken;
  EXPECT_THROW(Tokenizer::create(vocabulary), FormatError);
}

TEST(Spm, OneLongWordIsNotQuadratic) {
  const auto tokenizer = Tokenizer::create(
      without_space_prefix(spm({{"a", -9}, {"b", -9}, {"ab", -1}, {"aba", -2}, {"abab", -3}})));
  std::string text;
  for (uint32_t i = 0, x = 1; i < 300'000; ++i, x = x * 1664525 + 1013904223) {
    text.push_back("ab"[x >> 31]);
  }
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
}

}  // namespace
}  // namespace kve::testing
