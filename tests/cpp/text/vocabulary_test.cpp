#include "text/vocabulary.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "gguf/gguf_file.h"
#include "gguf/gguf_writer.h"
#include "text/vocabularies.h"

namespace kve::testing {
namespace {

GgufWriter writer_of(const Vocabulary& vocabulary) {
  GgufWriter writer;
  writer.set("general.architecture", "llama");
  writer.set("tokenizer.ggml.model", vocabulary.model);
  if (!vocabulary.pre.empty()) writer.set("tokenizer.ggml.pre", vocabulary.pre);
  writer.set_array("tokenizer.ggml.tokens", vocabulary.pieces);
  writer.set_array("tokenizer.ggml.scores", vocabulary.scores);
  std::vector<int32_t> kinds;
  for (const TokenKind kind : vocabulary.kinds) kinds.push_back(static_cast<int32_t>(kind));
  writer.set_array("tokenizer.ggml.token_type", kinds);
  if (!vocabulary.merges.empty()) writer.set_array("tokenizer.ggml.merges", vocabulary.merges);
  return writer;
}

Vocabulary read(const GgufWriter& writer) {
  return read_vocabulary(*GgufFile::from_bytes(writer.to_bytes()));
}

TEST(ReadVocabulary, ReadsEveryTable) {
  const Vocabulary written = byte_level("smollm", {{"a", "b"}});
  GgufWriter writer = writer_of(written);
  writer.set("general.name", "Test");
  writer.set("tokenizer.ggml.bos_token_id", uint32_t{1});
  writer.set("tokenizer.ggml.eos_token_id", int64_t{2});
  writer.set("tokenizer.ggml.seperator_token_id", uint32_t{3});
  writer.set("tokenizer.ggml.fim_mid_token_id", uint32_t{4});
  writer.set("tokenizer.ggml.prefix_token_id", uint32_t{5});  // the older name
  writer.set("tokenizer.ggml.add_bos_token", true);
  writer.set("tokenizer.ggml.add_space_prefix", false);
  writer.set_array("tokenizer.ggml.precompiled_charsmap", std::vector<uint8_t>{1, 0, 255});
  const Vocabulary vocabulary = read(writer);
  EXPECT_EQ(vocabulary.model, "gpt2");
  EXPECT_EQ(vocabulary.pre, "smollm");
  EXPECT_EQ(vocabulary.architecture, "llama");
  EXPECT_EQ(vocabulary.model_name, "Test");
  EXPECT_EQ(vocabulary.pieces, written.pieces);
  EXPECT_EQ(vocabulary.scores, written.scores);
  EXPECT_EQ(vocabulary.kinds, written.kinds);
  EXPECT_EQ(vocabulary.merges, written.merges);
  EXPECT_EQ(vocabulary.special.bos, 1);
  EXPECT_EQ(vocabulary.special.eos, 2);
  EXPECT_EQ(vocabulary.special.sep, 3);
  EXPECT_EQ(vocabulary.special.fim_middle, 4);
  EXPECT_EQ(vocabulary.special.fim_prefix, 5);
  EXPECT_EQ(vocabulary.special.unk, kNoToken);
  EXPECT_EQ(vocabulary.add_bos, true);
  EXPECT_EQ(vocabulary.add_eos, std::nullopt);
  EXPECT_EQ(vocabulary.add_space_prefix, false);
  EXPECT_EQ(vocabulary.precompiled_charsmap, std::string("\x01\0\xFF", 3));
}

TEST(ReadVocabulary, RolesByConvention) {
  const Vocabulary llama = read(writer_of(spm({{"a", 0}})));
  EXPECT_EQ(llama.special.unk, 0);
  EXPECT_EQ(llama.special.bos, 1);
  EXPECT_EQ(llama.special.eos, 2);
  // Those of BERT are beyond this vocabulary.
  Vocabulary small = spm({});
  small.model = "bert";
  small.pieces.resize(50), small.scores.resize(50), small.kinds.resize(50);
  EXPECT_EQ(read(writer_of(small)).special.bos, kNoToken);
  EXPECT_EQ(read(writer_of(small)).special.pad, 0);
}

TEST(ReadVocabulary, IdsOutsideOfTheVocabularyMeanNone) {
  GgufWriter writer = writer_of(byte_level("gpt-2", {}));
  writer.set("tokenizer.ggml.bos_token_id", uint32_t{256});
  writer.set("tokenizer.ggml.eos_token_id", int32_t{-1});
  writer.set("tokenizer.ggml.padding_token_id", uint32_t{0xFFFFFFFF});
  const Vocabulary vocabulary = read(writer);
  EXPECT_EQ(vocabulary.special.bos, kNoToken);
  EXPECT_EQ(vocabulary.special.eos, kNoToken);
  EXPECT_EQ(vocabulary.special.pad, kNoToken);
}

TEST(ReadVocabulary, FilesWithoutAVocabulary) {
  GgufWriter writer;
  writer.set("general.architecture", "llama");
  EXPECT_THROW(read(writer), UnsupportedError);
  writer.set("tokenizer.ggml.model", "none");
  EXPECT_THROW(read(writer), UnsupportedError);
  writer.set("tokenizer.ggml.model", "gpt2");
  EXPECT_THROW(read(writer), FormatError);  // no tokens
}

TEST(ReadVocabulary, WrongTypes) {
  const Vocabulary good = byte_level("gpt-2", {});
  const auto refused = [&](auto&& spoil) {
    GgufWriter writer = writer_of(good);
    spoil(writer);
    EXPECT_THROW(read(writer), FormatError);
  };
  refused([](GgufWriter& w) { w.set("tokenizer.ggml.model", uint32_t{1}); });
  refused([](GgufWriter& w) { w.set("tokenizer.ggml.tokens", "a"); });
  refused([](GgufWriter& w) { w.set_array("tokenizer.ggml.tokens", std::vector<float>{1, 2}); });
  refused([](GgufWriter& w) { w.set("tokenizer.ggml.scores", 1.0f); });
  refused(
      [](GgufWriter& w) { w.set_array("tokenizer.ggml.token_type", std::vector<int32_t>{1, 7}); });
  refused(
      [](GgufWriter& w) { w.set_array("tokenizer.ggml.token_type", std::vector<int32_t>{-1}); });
  refused([](GgufWriter& w) { w.set("tokenizer.ggml.merges", true); });
  refused([](GgufWriter& w) { w.set("tokenizer.ggml.bos_token_id", "one"); });
  refused([](GgufWriter& w) { w.set("tokenizer.ggml.add_bos_token", uint32_t{1}); });
  refused([](GgufWriter& w) {
    w.set_array("tokenizer.ggml.precompiled_charsmap", std::vector<float>{1});
  });
}

// Vocabularies that no file should hold: refused by an error that names the table, or usable.

TEST(HostileVocabulary, UnknownModel) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  vocabulary.model = "word2vec\n";
  try {
    Tokenizer::create(vocabulary);
    FAIL() << "no error";
  } catch (const UnsupportedError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("llama"), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

TEST(HostileVocabulary, TablesOfDifferentLength) {
  for (const std::string model : {"gpt2", "llama", "t5", "bert", "rwkv", "gemma4"}) {
    Vocabulary vocabulary = spm({{"a", 0}});
    vocabulary.model = model;
    Vocabulary bad = vocabulary;
    bad.pieces.clear();
    EXPECT_THROW(Tokenizer::create(bad), FormatError) << model;
    bad = vocabulary;
    bad.scores.pop_back();
    EXPECT_THROW(Tokenizer::create(bad), FormatError) << model;
    bad = vocabulary;
    bad.kinds.push_back(TokenKind::normal);
    EXPECT_THROW(Tokenizer::create(bad), FormatError) << model;
    bad = vocabulary;
    bad.pieces.back() = "<unk>";  // twice
    EXPECT_THROW(Tokenizer::create(bad), FormatError) << model;
    bad = vocabulary;
    bad.kinds.back() = TokenKind::byte;  // "a" spells no byte
    EXPECT_THROW(Tokenizer::create(bad), FormatError) << model;
    bad = vocabulary;
    bad.scores.back() = std::numeric_limits<float>::quiet_NaN();
    EXPECT_THROW(Tokenizer::create(bad), FormatError) << model;
    bad = vocabulary;
    bad.special.pad = 1000;
    EXPECT_THROW(Tokenizer::create(bad), FormatError) << model;
    bad.special.pad = -2;
    EXPECT_THROW(Tokenizer::create(bad), FormatError) << model;
  }
}

TEST(HostileVocabulary, OptionalTablesMayBeMissing) {
  Vocabulary vocabulary = spm({{"a", 0}});
  vocabulary.scores.clear();
  vocabulary.kinds.clear();
  vocabulary.add_space_prefix = false;
  EXPECT_EQ(Tokenizer::create(vocabulary)->encode("a", kPlain), (Tokens{kSpmFirst}));
}

TEST(HostileVocabulary, EmptyAndHugePieces) {
  Vocabulary vocabulary = spm({{"", 0}, {"a", 0}});
  add_piece(vocabulary, std::string(16'384, 'a'));
  add_piece(vocabulary, "", 0, TokenKind::control);
  vocabulary.add_space_prefix = false;
  for (const std::string model : {"gpt2", "llama", "t5", "bert", "rwkv", "gemma4"}) {
    vocabulary.model = model;
    const auto tokenizer = Tokenizer::create(vocabulary);
    EXPECT_NO_THROW(tokenizer->encode(std::string(17'000, 'a') + "b", kParse)) << model;
  }
  add_piece(vocabulary, std::string(16'385, 'b'));
  EXPECT_THROW(Tokenizer::create(vocabulary), FormatError);
}

TEST(HostileVocabulary, PiecesAreAnyBytes) {
  Vocabulary vocabulary = spm({{"\xFF\xFE", 0}, {"\xE2\x96", 0}, {"\xC3", 0}, {" ", 0}});
  add_piece(vocabulary, std::string("\0\0", 2));
  std::string text = "\xFF\xFE a \xE2\x96\x81\xC3\xC3\xF0";
  text.push_back('\0');
  for (const std::string model : {"gpt2", "llama", "t5", "bert", "rwkv", "gemma4"}) {
    vocabulary.model = model;
    const auto tokenizer = Tokenizer::create(vocabulary);
    for (const Token token : tokenizer->encode(text)) EXPECT_NO_THROW(tokenizer->piece(token));
  }
}

TEST(HostileVocabulary, TokensOutsideOfTheVocabulary) {
  const auto tokenizer = Tokenizer::create(byte_level("gpt-2", {}));
  for (const Token token : {-1, 256, INT32_MIN, INT32_MAX}) {
    EXPECT_THROW(tokenizer->piece(token), ConfigError);
    EXPECT_THROW(tokenizer->decode(Tokens{token}), ConfigError);
    EXPECT_FALSE(tokenizer->is_end_of_generation(token));
  }
}

TEST(HostileVocabulary, BosThatIsAskedForButMissing) {
  Vocabulary vocabulary = byte_level("gpt-2", {});
  vocabulary.add_bos = true;
  EXPECT_THROW(Tokenizer::create(vocabulary), FormatError);
}

// Random bytes through every model: no crash, and only tokens of the vocabulary.
TEST(HostileVocabulary, RandomTextsAndTables) {
  uint32_t state = 12345;
  const auto next = [&state](uint32_t below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
  };
  const auto random_text = [&](uint32_t longest) {
    constexpr std::string_view kParts[] = {"a",    "b",        "<s>",    " ",      "\n",
                                           "1",    "'s",       "▁",      "é",      "中",
                                           "\xFF", "\xE2\x96", "<0x41>", "\u0301", "!"};
    std::string out;
    for (uint32_t i = next(longest); i-- > 0;) out += kParts[next(std::size(kParts))];
    return out;
  };
  for (int round = 0; round < 300; ++round) {
    Vocabulary vocabulary = spm({});
    for (uint32_t i = next(30); i-- > 0;) {
      add_piece(vocabulary, random_text(4) + "#" + std::to_string(i),
                static_cast<float>(next(5)) - 2, static_cast<TokenKind>(1 + next(5)));
    }
    for (uint32_t i = next(20); i-- > 0;) {
      vocabulary.merges.push_back("x" + random_text(3) + " " + random_text(3) + "y");
    }
    vocabulary.add_space_prefix = next(2) == 0;
    for (const std::string model : {"gpt2", "llama", "t5", "bert", "rwkv", "gemma4"}) {
      vocabulary.model = model;
      const auto tokenizer = Tokenizer::create(vocabulary);
      for (const bool parse : {false, true}) {
        const Tokens tokens = tokenizer->encode(random_text(40), {.parse_special = parse});
        EXPECT_NO_THROW(tokenizer->decode(tokens));
      }
    }
  }
}

}  // namespace
}  // namespace kve::testing
