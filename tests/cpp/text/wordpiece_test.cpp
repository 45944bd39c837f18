#include <gtest/gtest.h>

#include "base/error.h"
#include "text/vocabularies.h"

namespace kve::testing {
namespace {

// [UNK], [CLS], [SEP], then `pieces` (from 3).
Vocabulary wordpiece(std::initializer_list<std::string_view> pieces) {
  Vocabulary out;
  out.model = "bert";
  out.special.unk = add_piece(out, "[UNK]", 0, TokenKind::control);
  out.special.cls = add_piece(out, "[CLS]", 0, TokenKind::control);
  out.special.sep = add_piece(out, "[SEP]", 0, TokenKind::control);
  for (const std::string_view piece : pieces) add_piece(out, std::string(piece));
  return out;
}

TEST(WordPiece, LongestPieceFromTheLeft) {
  const auto tokenizer = Tokenizer::create(wordpiece({"▁un", "▁unaff", "aff", "able", "a", "ble"}));
  EXPECT_EQ(tokenizer->encode("unaffable", kPlain), (Tokens{4, 6}));
  EXPECT_EQ(tokenizer->encode("un able", kPlain), (Tokens{3, 0}));  // "able" begins no word
  EXPECT_EQ(tokenizer->encode("unaffx", kPlain), (Tokens{0}));      // all or nothing
}

TEST(WordPiece, FoldsCaseAccentsAndControls) {
  const auto tokenizer = Tokenizer::create(wordpiece({"▁elan", "▁i"}));
  EXPECT_EQ(tokenizer->encode("Élan ÉLAN e\u0301lan", kPlain), (Tokens{3, 3, 3}));
  EXPECT_EQ(tokenizer->encode("el\u200ban\u00ad e\x01lan", kPlain), (Tokens{3, 3}));
  EXPECT_EQ(tokenizer->encode("İ", kPlain), (Tokens{4}));
  EXPECT_EQ(tokenizer->encode("\u0301 \x01", kPlain), Tokens{});
}

TEST(WordPiece, CaseAndAccentsCanBeKept) {
  Vocabulary vocabulary = wordpiece({"▁Élan", "▁élan", "▁elan"});
  vocabulary.lower_case = false;
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("Élan", kPlain), (Tokens{3}));
  vocabulary.lower_case = true;
  vocabulary.strip_accents = false;
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("Élan", kPlain), (Tokens{4}));
  vocabulary.strip_accents = true;
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("Élan", kPlain), (Tokens{5}));
}

TEST(WordPiece, PunctuationAndIdeographsStandAlone) {
  const auto tokenizer = Tokenizer::create(wordpiece({"▁a", "▁.", "▁$", "▁中", "▁文", "▁。"}));
  EXPECT_EQ(tokenizer->encode("a.a$中文。a", kPlain), (Tokens{3, 4, 3, 5, 6, 7, 8, 3}));
}

TEST(WordPiece, SpacesSeparate) {
  const auto tokenizer = Tokenizer::create(wordpiece({"▁a"}));
  EXPECT_EQ(tokenizer->encode(" a\ta\n\u3000a\u2028", kPlain), (Tokens{3, 3, 3}));
}

TEST(WordPiece, SurroundsWithClsAndSep) {
  Vocabulary vocabulary = wordpiece({"▁a"});
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a"), (Tokens{1, 3, 2}));
  vocabulary.add_sep = false;
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a"), (Tokens{1, 3}));
}

TEST(WordPiece, GivesUpOnLongWords) {
  const auto tokenizer = Tokenizer::create(wordpiece({"▁a", "a"}));
  EXPECT_EQ(tokenizer->encode(std::string(100, 'a'), kPlain).size(), 100u);
  EXPECT_EQ(tokenizer->encode(std::string(101, 'a'), kPlain), (Tokens{0}));
}

TEST(WordPiece, DecodesWithSpaces) {
  const auto tokenizer = Tokenizer::create(wordpiece({"▁un", "able", "▁a"}));
  EXPECT_EQ(tokenizer->decode(Tokens{1, 3, 4, 5, 2}), "unable a");
}

TEST(WordPiece, NeedsAnUnknownToken) {
  Vocabulary vocabulary = wordpiece({"▁a"});
  vocabulary.special.unk = kNoToken;
  EXPECT_THROW(Tokenizer::create(vocabulary), FormatError);
}

TEST(Rwkv, LongestPieceOfBytes) {
  Vocabulary vocabulary;
  vocabulary.model = "rwkv";
  for (const char* piece : {"a", "ab", "abcd", "\\n", "\\xff\\x00", "\\\\", "\\x4", "é"}) {
    add_piece(vocabulary, piece);
  }
  const auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_EQ(tokenizer->encode("abcaabcd\n", kPlain), (Tokens{1, 0, 2, 3}));  // c has no piece
  const std::string bytes("\xFF\0\\éx4", 7);
  EXPECT_EQ(tokenizer->encode(bytes, kPlain), (Tokens{4, 5, 7, 6}));
  EXPECT_EQ(tokenizer->decode(Tokens{4, 5, 7, 6}), bytes);
}

}  // namespace
}  // namespace kve::testing
