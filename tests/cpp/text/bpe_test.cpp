#include <gtest/gtest.h>

#include "base/error.h"
#include "text/vocabularies.h"

namespace kve::testing {
namespace {

TEST(Bpe, MergesByRankNotByPosition) {
  // "abc": bc has the better rank, so a is left over; ab alone merges.
  const auto tokenizer = Tokenizer::create(byte_level("gpt-2", {{"b", "c"}, {"a", "b"}}));
  EXPECT_EQ(tokenizer->encode("abc", kPlain), (Tokens{'a', 256}));
  EXPECT_EQ(tokenizer->encode("ab", kPlain), (Tokens{257}));
}

TEST(Bpe, EqualRanksMergeFromTheLeft) {
  const auto tokenizer = Tokenizer::create(byte_level("gpt-2", {{"a", "a"}, {"aa", "a"}}));
  EXPECT_EQ(tokenizer->encode("aaa", kPlain), (Tokens{257}));
  EXPECT_EQ(tokenizer->encode("aaaaa", kPlain), (Tokens{256, 257}));
}

TEST(Bpe, NeverMergesAcrossWords) {
  const auto tokenizer =
      Tokenizer::create(byte_level("gpt-2", {{"a", " "}, {" ", "b"}, {"1", "2"}}));
  EXPECT_EQ(tokenizer->encode("a b12", kPlain), (Tokens{'a', 257, 258}));
  // smollm makes every digit a word.
  const auto digits = Tokenizer::create(byte_level("smollm", {{"1", "2"}}));
  EXPECT_EQ(digits->encode("12", kPlain), (Tokens{'1', '2'}));
}

TEST(Bpe, SpellsEveryByte) {
  const auto tokenizer = Tokenizer::create(byte_level("gpt-2", {}));
  std::string text = "\x01 z\x7F";
  for (const char32_t c : {0xA0u, 0xADu, 0xE9u, 0x20ACu, 0x1F680u}) unicode::append_utf8(c, text);
  Tokens expected;
  for (const char c : text) expected.push_back(static_cast<uint8_t>(c));
  EXPECT_EQ(tokenizer->encode(text, kPlain), expected);
  EXPECT_EQ(tokenizer->decode(expected), text);
}

TEST(Bpe, BrokenUtf8BecomesTheReplacementCharacter) {
  const auto tokenizer = Tokenizer::create(byte_level("gpt-2", {}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\xFFz\xE2\x82", kPlain)),
            "a\xEF\xBF\xBDz\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Bpe, IgnoreMergesTakesWholeWordsFirst) {
  // The merges can only make "ab" + "cd"; "abcd" is a piece that no merge reaches.
  Vocabulary vocabulary = byte_level("llama-bpe", {{"a", "b"}, {"c", "d"}});
  const Token whole = add_piece(vocabulary, "abcd");
  vocabulary.special.bos = add_piece(vocabulary, "<|begin_of_text|>", 0, TokenKind::control);
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("abcd", kPlain), (Tokens{whole}));
  EXPECT_TRUE(Tokenizer::create(vocabulary)->add_bos());
  vocabulary.pre = "qwen2";
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("abcd", kPlain), (Tokens{256, 257}));
  EXPECT_FALSE(Tokenizer::create(vocabulary)->add_bos());
}

TEST(Bpe, DropsBytesThatTheVocabularyLeavesOut) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  vocabulary.pieces['b'] = "unreachable";
  const auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_EQ(tokenizer->encode("abc", kPlain), (Tokens{'a', 'c'}));
}

TEST(Bpe, MergesThroughStringsThatAreNoPieces) {
  // "ab" is named by merges only: "abc" is reached through it, "ab" alone falls apart again.
  Vocabulary vocabulary = byte_level("gpt-2", {});
  vocabulary.merges = {"a b", "ab c"};
  const Token abc = add_piece(vocabulary, "abc");
  const auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_EQ(tokenizer->encode("abc", kPlain), (Tokens{abc}));
  EXPECT_EQ(tokenizer->encode("ab", kPlain), (Tokens{'a', 'b'}));
}

TEST(Bpe, ThePieceOfASpaceMayBeginAMerge) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  vocabulary.merges = {"\xC4\xA0 a"};  // "Ġ a"
  const Token merged = add_piece(vocabulary,
                                 "\xC4\xA0"
                                 "a");
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode(" a", kPlain), (Tokens{merged}));
}

TEST(Bpe, MalformedMergesAreRefused) {
  for (const std::string merge : {"", "ab", " ab", "ab ", " "}) {
    Vocabulary vocabulary = byte_level("gpt-2", {});
    vocabulary.merges = {merge};
    EXPECT_THROW(Tokenizer::create(vocabulary), FormatError) << merge;
  }
}

TEST(Bpe, RepeatedMergesKeepTheirFirstRank) {
  Vocabulary vocabulary = byte_level("gpt-2", {{"b", "c"}, {"a", "b"}});
  vocabulary.merges.push_back("b c");
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("abc", kPlain), (Tokens{'a', 256}));
}

TEST(Bpe, MergesThatGrowFromTheirOwnResultEnd) {
  // "a" + "a" -> "aa" -> "aaa": every step shortens the word, whatever the merges say.
  const auto tokenizer = Tokenizer::create(
      byte_level("gpt-2", {{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}, {"aaaaaaaa", "aaaaaaaa"}}));
  EXPECT_EQ(tokenizer->encode(std::string(31, 'a'), kPlain), (Tokens{259, 258, 257, 256, 'a'}));
}

TEST(Bpe, OneLongWordIsNotQuadratic) {
  const auto tokenizer =
      Tokenizer::create(byte_level("gpt-2", {{"a", "b"}, {"ab", "a"}, {"ab", "ab"}}));
  std::string text;
  for (uint32_t i = 0, x = 1; i < 300'000; ++i, x = x * 1664525 + 1013904223) {
    text.push_back("ab"[x >> 31]);
  }
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
}

TEST(Bpe, PiecesOutsideOfTheAlphabetAreText) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  const Token token = add_piece(vocabulary, "\xE4\xB8\xAD");  // not byte-level
  EXPECT_EQ(Tokenizer::create(vocabulary)->piece(token), "\xE4\xB8\xAD");
}

// gemma4: raw UTF-8, U+2581 for spaces, bytes as <0xXX>, runs of newlines as pieces.
class Gemma4 : public ::testing::Test {
 protected:
  Gemma4() {
    vocabulary_.model = "gemma4";
    vocabulary_.special.bos = add_piece(vocabulary_, "<bos>", 0, TokenKind::control);
    bytes_ = add_byte_tokens(vocabulary_);
    space_ = add_piece(vocabulary_, "▁");
    a_ = add_piece(vocabulary_, "a");
    space_a_ = add_piece(vocabulary_, "▁a");
    eacute_ = add_piece(vocabulary_, "é");
    newline_ = add_piece(vocabulary_, "\n");
    newlines_ = add_piece(vocabulary_, "\n\n\n");
    vocabulary_.merges = {"▁ a"};
    tokenizer_ = Tokenizer::create(vocabulary_);
  }
  Vocabulary vocabulary_;
  Token bytes_, space_, a_, space_a_, eacute_, newline_, newlines_;
  std::unique_ptr<const Tokenizer> tokenizer_;
};

TEST_F(Gemma4, EncodesRawText) {
  EXPECT_EQ(tokenizer_->encode("a a éa", kPlain), (Tokens{a_, space_a_, space_, eacute_, a_}));
  EXPECT_EQ(tokenizer_->encode("\n\n\na\n\n", kPlain), (Tokens{newlines_, a_, newline_, newline_}));
}

TEST_F(Gemma4, SpellsUnknownCharactersByBytes) {
  const Tokens tokens = tokenizer_->encode("a€", kPlain);
  EXPECT_EQ(tokens, (Tokens{a_, bytes_ + 0xE2, bytes_ + 0x82, bytes_ + 0xAC}));
  EXPECT_EQ(tokenizer_->decode(tokens), "a€");
}

TEST_F(Gemma4, AlwaysBeginsWithBos) {
  EXPECT_EQ(tokenizer_->encode("a"), (Tokens{vocabulary_.special.bos, a_}));
  vocabulary_.add_bos = false;
  EXPECT_TRUE(Tokenizer::create(vocabulary_)->add_bos());
}

}  // namespace
}  // namespace kve::testing
