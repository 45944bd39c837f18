#include "text/pretokenizer.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/unicode.h"

namespace kve {
namespace {

std::vector<std::string> words(std::string_view name, std::string_view text) {
  const std::u32string characters = unicode::decode_lenient(text);
  std::vector<std::string> out;
  size_t begin = 0;
  for (const uint32_t end : PreTokenizer(name).split(characters)) {
    std::string& word = out.emplace_back();
    for (size_t i = begin; i < end; ++i) unicode::append_utf8(characters[i], word);
    begin = end;
  }
  EXPECT_EQ(begin, characters.size());
  return out;
}

std::string joined(std::string_view name, std::string_view text) {
  std::string out;
  for (const std::string& word : words(name, text)) out += (out.empty() ? "" : "¦") + word;
  return out;
}

// What the Python package tokenizers 0.23 (regular expressions by Oniguruma) cuts when it is given
// the published expressions of each pre-tokenizer, words separated by ¦.
constexpr std::string_view kTexts[] = {
    "I'll DON'T we're hello  World\n\n  x = 12345678 ½ ٣٤",
    "naïve e\u0301te\u0301 हिन\u094dदी 中文々字カナ한국어 HTTPServerǅa __init__(a, "
    "b)!!\r\n\t</tag>   ...\u3000 1234,56 \n "};

struct Golden {
  std::string_view name;
  std::string_view words[2];
};
constexpr Golden kGolden[] = {
    {"bailingmoe",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e¦\u0301te¦\u0301¦ ह¦िन¦\u094dद¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n¦ "}},
    {"bloom",
     {"I'll¦ DON'T¦ we're¦ hello¦ ¦ World¦\n\n ¦ x¦ =¦ 12345678¦ ½¦ ٣٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ __init__¦(¦a¦,¦ "
      "b¦)!!\r\n\t¦</tag>¦   ...\u3000¦ 1234¦,¦56¦ \n "}},
    {"chameleon",
     {"I¦'¦ll¦ DON¦'¦T¦ we¦'¦re¦ hello¦  ¦World¦\n¦\n¦  ¦x¦ ¦=¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e¦\u0301¦te¦\u0301¦ ह¦ि¦न¦\u094d¦द¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "¦_¦_¦init¦_¦_¦(¦a¦,¦ b¦)¦!¦!¦\r¦\n¦\t¦<¦/¦tag¦>¦  ¦ ¦.¦.¦.¦\u3000 ¦1¦2¦3¦4¦,¦5¦6¦ ¦\n¦ "}},
    {"deepseek-coder",
     {"I¦'¦ll¦ DON¦'¦T¦ we¦'¦re¦ hello¦ ¦ World¦\n¦\n¦ ¦ x¦ = ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e¦\u0301¦te¦\u0301¦ ¦ह¦ि¦न¦\u094d¦द¦ी¦ ¦中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!¦\r¦\n¦\t<¦/¦tag¦>  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ ¦\n¦ "}},
    {"deepseek-llm",
     {"I¦'¦ll¦ DON¦'¦T¦ we¦'¦re¦ hello¦ ¦ World¦\n¦\n¦ ¦ x¦ =¦ ¦12345678¦ ¦½¦ ¦٣٤",
      "na¦ï¦ve¦ e¦\u0301¦te¦\u0301 ¦हिन\u094dदी¦ ¦中文々字カナ한국어¦ HTTPServer¦ǅ¦a¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!¦\r¦\n¦\t</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1234¦,¦56¦ ¦\n¦ "}},
    {"deepseek-v3",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦123¦456¦78¦ ¦½¦ ¦٣٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ ¦中文¦々¦字カナ¦한국어¦ HTTPServerǅa¦ __¦init¦__(¦a¦,¦ "
      "b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000 ¦123¦4¦,¦56¦ \n¦ "}},
    {"default",
     {"I¦'¦ll¦ DON¦'¦T¦ we¦'¦re¦ hello¦ ¦ World¦\n\n ¦ x¦ ¦=¦ ¦123¦456¦78¦ ¦½¦ ¦٣٤",
      "naïve¦ e¦\u0301¦te¦\u0301¦ ह¦ि¦न¦\u094d¦द¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "¦__¦init¦__(¦a¦,¦ b¦)!!¦\r\n\t¦</¦tag¦>¦   ¦...¦\u3000¦ ¦123¦4¦,¦56¦ \n "}},
    {"exaone-moe",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve e\u0301te\u0301 हिन\u094dदी 中文々字カナ한국어 HTTPServerǅa¦ __¦init¦__(¦a¦,¦ "
      "b¦)!!\r¦\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n¦ "}},
    {"falcon",
     {"I¦'¦ll¦ DON¦'¦T¦ we¦'¦re¦ hello¦ ¦ World¦\n\n ¦ x¦ ¦=¦ ¦123¦456¦78¦ ½¦ ٣٤",
      "naïve¦ e¦\u0301¦te¦\u0301¦ ह¦ि¦न¦\u094d¦द¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "¦__¦init¦__(¦a¦,¦ b¦)!!¦\r\n\t¦</¦tag¦>¦   ¦...¦\u3000¦ ¦123¦4¦,¦56¦ \n "}},
    {"gemma4",
     {"I'll DON'T we're hello  World¦\n\n¦  x = 12345678 ½ ٣٤",
      "naïve e\u0301te\u0301 हिन\u094dदी 中文々字カナ한국어 HTTPServerǅa __init__(a, "
      "b)!!\r¦\n¦\t</tag>   ...\u3000 1234,56 ¦\n¦ "}},
    {"gpt-2",
     {"I¦'ll¦ DON¦'¦T¦ we¦'re¦ hello¦ ¦ World¦\n\n ¦ x¦ =¦ 12345678¦ ½¦ ٣٤",
      "naïve¦ e¦\u0301¦te¦\u0301¦ ह¦ि¦न¦\u094d¦द¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!¦\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ 1234¦,¦56¦ \n "}},
    {"gpt-4o",
     {"I'll¦ DON'T¦ we're¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦123¦456¦78¦ ¦½¦ ¦٣٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ 中文々字カナ한국어¦ HTTPServer¦ǅa¦ __¦init¦__(¦a¦,¦ "
      "b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦123¦4¦,¦56¦ \n¦ "}},
    {"jais-2",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦123¦456¦78¦ ¦½¦ ¦٣٤",
      "naïve¦ e¦\u0301te¦\u0301¦ ह¦िन¦\u094dद¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦123¦4¦,¦56¦ \n¦ "}},
    {"kimi-k2",
     {"I'll¦ DON'T¦ we're¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦123¦456¦78¦ ¦½¦ ¦٣٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ ¦中文々字¦カナ한국어¦ HTTPServer¦ǅa¦ __¦init¦__(¦a¦,¦ "
      "b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦123¦4¦,¦56¦ \n¦ "}},
    {"laguna",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e¦\u0301te¦\u0301¦ ह¦िन¦\u094dद¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!\r¦\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ ¦\n¦ "}},
    {"llama-bpe",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦123¦456¦78¦ ¦½¦ ¦٣٤",
      "naïve¦ e¦\u0301te¦\u0301¦ ह¦िन¦\u094dद¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦123¦4¦,¦56¦ \n¦ "}},
    {"minicpm5",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦123¦456¦78¦ ¦½¦ ¦٣٤",
      "naïve¦ e¦\u0301te¦\u0301¦ ह¦िन¦\u094dद¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000 ¦123¦4¦,¦56¦ \n¦ "}},
    {"qwen2",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e¦\u0301te¦\u0301¦ ह¦िन¦\u094dद¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n¦ "}},
    {"qwen35",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ __¦init¦__(¦a¦,¦ "
      "b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n¦ "}},
    {"seed-coder",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e¦\u0301te¦\u0301¦ ह¦िन¦\u094dद¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!¦\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n¦ "}},
    {"smollm",
     {"I¦'ll¦ DON¦'¦T¦ we¦'re¦ hello¦ ¦ World¦\n\n ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e¦\u0301¦te¦\u0301¦ ह¦ि¦न¦\u094d¦द¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!¦\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000 ¦1¦2¦3¦4¦,¦5¦6¦ \n "}},
    {"spark2_5",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n¦\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ ¦中文¦々¦字カナ¦한국어¦ HTTPServerǅa¦ __¦init¦__(¦a¦,¦ "
      "b¦)!!¦\r¦\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000 ¦1¦2¦3¦4¦,¦5¦6¦ \n "}},
    {"superbpe",
     {"I'll DON'T we're hello  World\n\n  x = ¦12¦345¦678¦ ¦½¦ ¦٣٤",
      "naïve e\u0301te\u0301 हिन\u094dदी 中文々字カナ한국어 HTTPServerǅa __init__(a, "
      "b)!!\r\n\t</tag>   ...\u3000 ¦1¦234¦,¦56¦ \n "}},
    {"tekken",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ 中文々字カナ한국어¦ HTTPServer¦ǅa¦ __¦init¦__(¦a¦,¦ "
      "b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n¦ "}},
    {"tiny_aya",
     {"I'll¦ DON'T¦ we're¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦12¦345¦678¦ ¦½¦ ¦٣٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ 中文々字カナ한국어¦ HTTPServer¦ǅa¦ __¦init¦__(¦a¦,¦ "
      "b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000 ¦1¦234¦,¦56¦ \n¦ "}},
    {"ufakzeka",
     {"I¦'ll¦ DON¦'T¦ we¦'re¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e¦\u0301te¦\u0301¦ ह¦िन¦\u094dद¦ी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n¦ "}},
    {"viking",
     {"I'll¦ DON'T¦ we're¦ hello¦ ¦ World¦\n\n ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ 中文々字カナ한국어¦ HTTPServerǅa¦ __init__¦(¦a¦,¦ "
      "b¦)!!\r\n\t¦</tag>¦   ...\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n "}},
    {"youtu",
     {"I'll¦ DON'T¦ we're¦ hello¦ ¦ World¦\n\n¦ ¦ x¦ =¦ ¦1¦2¦3¦4¦5¦6¦7¦8¦ ¦½¦ ¦٣¦٤",
      "naïve¦ e\u0301te\u0301¦ हिन\u094dदी¦ ¦中文¦々¦字カナ¦한국어¦ HTTPServer¦ǅa¦ "
      "__¦init¦__(¦a¦,¦ b¦)!!\r\n¦\t¦</¦tag¦>¦  ¦ ...¦\u3000¦ ¦1¦2¦3¦4¦,¦5¦6¦ \n¦ "}},
};

TEST(PreTokenizer, CutsAsTheReference) {
  for (const Golden& golden : kGolden) {
    for (size_t i = 0; i < std::size(kTexts); ++i) {
      EXPECT_EQ(joined(golden.name, kTexts[i]), golden.words[i]) << golden.name;
    }
  }
}

TEST(PreTokenizer, NamesOfOneFamilyCutAlike) {
  const std::pair<std::string_view, std::vector<std::string_view>> families[] = {
      {"gpt-2", {"mpt", "olmo", "gpt-neox", "jais", "phi-2", "exaone4", "roberta-bpe"}},
      {"smollm", {"starcoder", "refact", "command-r", "codeshell", "exaone"}},
      {"llama-bpe", {"llama3", "llama-v3", "dbrx", "smaug-bpe", "glm4", "falcon3"}},
      {"qwen2", {"stablelm2", "hunyuan", "grok-2", "deepseek-r1-qwen", "megrez"}},
      {"gpt-4o", {"llama4", "minimax-m2"}},
      {"deepseek-v3", {"hunyuan-dense", "joyai-llm"}},
      {"bloom", {"poro-chat", "gpt3-finnish"}},
      {"default", {""}},
  };
  for (const auto& [first, others] : families) {
    for (const std::string_view other : others) {
      for (const std::string_view text : kTexts) {
        EXPECT_EQ(joined(other, text), joined(first, text)) << other;
      }
    }
  }
}

TEST(PreTokenizer, Traits) {
  EXPECT_TRUE(PreTokenizer("llama-bpe").traits().ignore_merges);
  EXPECT_TRUE(PreTokenizer("llama-bpe").traits().add_bos);
  EXPECT_TRUE(PreTokenizer("tekken").traits().ignore_merges);
  EXPECT_FALSE(PreTokenizer("qwen2").traits().ignore_merges);
  EXPECT_FALSE(PreTokenizer("smollm").traits().add_bos);
  EXPECT_TRUE(PreTokenizer("gemma4").traits().raw_text);
}

TEST(PreTokenizer, UnknownNameListsTheKnownOnes) {
  try {
    PreTokenizer("klingon");
    FAIL() << "no error";
  } catch (const UnsupportedError& error) {
    EXPECT_NE(std::string(error.what()).find("llama-bpe"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("'klingon'"), std::string::npos) << error.what();
  }
}

TEST(PreTokenizer, WhiteSpaceRuns) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(words("gpt-2", "   x"), (Words{"  ", " x"}));
  EXPECT_EQ(words("gpt-2", "x   "), (Words{"x", "   "}));
  EXPECT_EQ(words("llama-bpe", " \n \n  x"), (Words{" \n \n", " ", " x"}));
  EXPECT_EQ(words("llama-bpe", "a \u00a0b"), (Words{"a", " ", "\u00a0b"}));
  EXPECT_EQ(words("deepseek-llm", "a  \nb  "), (Words{"a", "  ", "\n", "b", "  "}));
  EXPECT_EQ(words("jais-2", std::string(13, ' ') + "x"),
            (Words{std::string(8, ' '), std::string(4, ' '), " x"}));
  EXPECT_EQ(words("jais-2", std::string(7, ' ')),
            (Words{std::string(4, ' '), std::string(2, ' '), " "}));
}

TEST(PreTokenizer, ContractionsIgnoreCaseWhereTheExpressionDoes) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(words("gpt-2", "I'LL"), (Words{"I", "'", "LL"}));
  EXPECT_EQ(words("llama-bpe", "I'LL'S'vE'x"), (Words{"I", "'LL", "'S", "'vE", "'x"}));
  EXPECT_EQ(words("llama-bpe", "'\u017f"), (Words{"'\u017f"}));  // the long s
  EXPECT_EQ(words("gpt-4o", "HeLLo'S"), (Words{"He", "LLo'S"}));
  EXPECT_EQ(words("qwen2", "'"), (Words{"'"}));
  EXPECT_EQ(words("qwen2", "'r"), (Words{"'r"}));
}

TEST(PreTokenizer, GroupsOfDigits) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(words("afmoe", "1234567 12 123"), (Words{"1", "234", "567", " ", "12", " ", "123"}));
  EXPECT_EQ(words("tiny_aya", "1234567"), (Words{"1", "234", "567"}));
  EXPECT_EQ(words("tiny_aya", "1234567x"), (Words{"123", "456", "7", "x"}));
  EXPECT_EQ(words("superbpe", "1234567"), (Words{"1", "234", "567"}));
  EXPECT_EQ(words("llama-bpe", "1234567"), (Words{"123", "456", "7"}));
  EXPECT_EQ(words("falcon", "1234567"), (Words{"123", "456", "7"}));
}

TEST(PreTokenizer, ChameleonCodes) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(words("chameleon", "a<sentinel:12>IMGIMGABCDZIMGIMGZ"),
            (Words{"a", "<", "sentinel", ":", "1", "2", ">", "IMGIMGABCDZ", "IMGIMGZ"}));
}

// Every family, on runs that make a naive matcher quadratic (and this test never end).
TEST(PreTokenizer, LongRunsTakeLinearTime) {
  const std::string patterns[] = {" ", "\n",     "1",      "a",  "A",  "!",
                                  "'", "\u0301", "\u4e2d", "a ", "1\n"};
  for (const Golden& golden : kGolden) {
    const PreTokenizer pre_tokenizer(golden.name);
    for (const std::string& pattern : patterns) {
      std::u32string text;
      const std::u32string part = unicode::decode_lenient(pattern);
      while (text.size() < 50'000) text += part;
      text += U'x';
      const std::vector<uint32_t> ends = pre_tokenizer.split(text);
      ASSERT_FALSE(ends.empty());
      EXPECT_EQ(ends.back(), text.size()) << golden.name;
    }
  }
}

TEST(PreTokenizer, EmptyText) { EXPECT_TRUE(PreTokenizer("gpt-2").split(U"").empty()); }

}  // namespace
}  // namespace kve
