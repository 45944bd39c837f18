#include "text/special_tokens.h"

#include <gtest/gtest.h>

#include "text/vocabularies.h"

namespace kve::testing {
namespace {

TEST(SpecialTokens, ControlTokensNeedParseSpecialUserDefinedOnesDoNot) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  const Token control = add_piece(vocabulary, "<|x|>", 0, TokenKind::control);
  const Token unknown = add_piece(vocabulary, "<|u|>", 0, TokenKind::unknown);
  const Token user = add_piece(vocabulary, "<tool>", 0, TokenKind::user_defined);
  const auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_EQ(tokenizer->encode("a<|x|>b", kParse), (Tokens{'a', control, 'b'}));
  EXPECT_EQ(tokenizer->encode("<|x|>", kPlain), (Tokens{'<', '|', 'x', '|', '>'}));
  EXPECT_EQ(tokenizer->encode("<|u|><tool>", kParse), (Tokens{unknown, user}));
  EXPECT_EQ(tokenizer->encode("<tool>a<tool>", kPlain), (Tokens{user, 'a', user}));
}

TEST(SpecialTokens, LongestFirstThenLeftmost) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  const Token two = add_piece(vocabulary, "  ", 0, TokenKind::user_defined);
  const Token four = add_piece(vocabulary, "    ", 0, TokenKind::user_defined);
  const Token ab = add_piece(vocabulary, "ab", 0, TokenKind::user_defined);
  const Token bcd = add_piece(vocabulary, "bcd", 0, TokenKind::user_defined);
  const auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_EQ(tokenizer->encode(std::string(7, ' '), kPlain), (Tokens{four, two, ' '}));
  EXPECT_EQ(tokenizer->encode("abcd", kPlain), (Tokens{'a', bcd}));
  EXPECT_EQ(tokenizer->encode("abab", kPlain), (Tokens{ab, ab}));
}

TEST(SpecialTokens, PhiThreeTokensSwallowTheSpaceBehindThem) {
  Vocabulary vocabulary = spm({{"▁", -1}, {"a", -1}, {"▁a", 0}});
  const Token end = add_piece(vocabulary, "<|end|>", 0, TokenKind::control);
  vocabulary.model_name = "Phi-3-mini";
  const auto phi = Tokenizer::create(vocabulary);
  EXPECT_EQ(phi->encode("a<|end|> \n a", kParse), (Tokens{kSpmFirst + 2, end, kSpmFirst + 2}));
  EXPECT_EQ(phi->encode("<|end|>  ", kParse), (Tokens{end}));
  EXPECT_EQ(phi->encode("<s>  a", kParse), (Tokens{1, kSpmFirst, kSpmFirst, kSpmFirst + 2}));
  vocabulary.model_name = "other";
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("<|end|> a", kParse),
            (Tokens{end, kSpmFirst, kSpmFirst + 2}));
}

TEST(SpecialTokens, MasksSwallowTheSpaceBeforeThem) {
  Vocabulary vocabulary = byte_level("jina-v2-code", {});
  const Token mask = add_piece(vocabulary, "<mask>", 0, TokenKind::control);
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a \t<mask> b", kParse),
            (Tokens{'a', mask, ' ', 'b'}));
  vocabulary.pre = "gpt-2";
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a <mask>", kParse), (Tokens{'a', ' ', mask}));
}

TEST(SpecialTokens, EverySpmFragmentBeginsWithASpace) {
  Vocabulary vocabulary = spm({{"▁", -1}, {"a", -1}, {"▁a", 0}});
  const Token user = add_piece(vocabulary, "<t>", 0, TokenKind::user_defined);
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a<t>a", kPlain),
            (Tokens{kSpmFirst + 2, user, kSpmFirst + 2}));
}

TEST(SpecialTokens, RolesAreFoundByName) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  const Token end = add_piece(vocabulary, "<|im_end|>");  // not marked as control in the file
  const Token prefix = add_piece(vocabulary, "<fim_prefix>", 0, TokenKind::control);
  const Token eos = add_piece(vocabulary, "my-eos", 0, TokenKind::control);
  vocabulary.special.eos = eos;
  const auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_EQ(tokenizer->vocabulary().special.eot, end);
  EXPECT_EQ(tokenizer->vocabulary().special.fim_prefix, prefix);
  EXPECT_EQ(tokenizer->vocabulary().kinds[static_cast<size_t>(end)], TokenKind::control);
  EXPECT_TRUE(tokenizer->is_end_of_generation(end));
  EXPECT_TRUE(tokenizer->is_end_of_generation(eos));
  EXPECT_FALSE(tokenizer->is_end_of_generation(prefix));
  EXPECT_FALSE(tokenizer->is_end_of_generation('a'));
  EXPECT_FALSE(tokenizer->is_end_of_generation(kNoToken));
}

TEST(SpecialTokens, StatedRolesWinOverNames) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  add_piece(vocabulary, "<|im_end|>", 0, TokenKind::control);
  vocabulary.special.eot = add_piece(vocabulary, "other", 0, TokenKind::control);
  EXPECT_EQ(Tokenizer::create(vocabulary)->vocabulary().special.eot, vocabulary.special.eot);
}

TEST(SpecialTokens, HarmonyAnswersGoOnBehindEnd) {
  Vocabulary vocabulary = byte_level("gpt-4o", {});
  const Token end = add_piece(vocabulary, "<|end|>", 0, TokenKind::control);
  const Token channel = add_piece(vocabulary, "<|channel|>", 0, TokenKind::control);
  EXPECT_TRUE(Tokenizer::create(vocabulary)->is_end_of_generation(end));
  const Token back = add_piece(vocabulary, "<|return|>", 0, TokenKind::control);
  add_piece(vocabulary, "<|call|>", 0, TokenKind::control);
  const auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_FALSE(tokenizer->is_end_of_generation(end));
  EXPECT_TRUE(tokenizer->is_end_of_generation(back));
  EXPECT_EQ(tokenizer->piece(channel, false), "<|channel|>");
}

TEST(SpecialTokens, ControlPiecesAreRenderedOnRequest) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  const Token control = add_piece(vocabulary, "<|x|>", 0, TokenKind::control);
  const Token unused = add_piece(vocabulary, "unused", 0, TokenKind::unused);
  const auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_EQ(tokenizer->piece(control), "<|x|>");
  EXPECT_EQ(tokenizer->piece(control, false), "");
  EXPECT_EQ(tokenizer->piece(unused), "");
  EXPECT_EQ(tokenizer->decode(Tokens{'a', control, 'b'}), "ab");
  EXPECT_EQ(tokenizer->decode(Tokens{'a', control, 'b'}, {.render_special = true}), "a<|x|>b");
}

}  // namespace
}  // namespace kve::testing
