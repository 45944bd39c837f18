// The public suite of the field: vocabularies as NAME.gguf, hard strings in NAME.gguf.inp and the
// tokens that the original tokenizers make of them in NAME.gguf.out. It is too large to be kept
// here (llama.cpp has it in its folder "models"); KVENGINE_VOCABS names a folder that holds it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "gguf/gguf_file.h"
#include "text/vocabularies.h"

namespace kve::testing {
namespace {

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

std::vector<std::string> inputs_of(const std::string& text) {
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  std::vector<std::string> out;
  for (size_t pos = 0; pos <= text.size();) {
    const size_t end = std::min(text.find(kSeparator, pos), text.size());
    out.push_back(text.substr(pos, end - pos));
    pos = end + kSeparator.size();
  }
  return out;
}

std::vector<Tokens> outputs_of(const std::string& text) {
  std::vector<Tokens> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream numbers(line);
    Tokens& tokens = out.emplace_back();
    for (Token token; numbers >> token;) tokens.push_back(token);
  }
  return out;
}

void check_vocabulary(const std::filesystem::path& path) {
  SCOPED_TRACE(path.filename().string());
  const auto tokenizer = Tokenizer::create(read_vocabulary(*GgufFile::open(path)));
  const std::vector<std::string> inputs = inputs_of(contents(path.string() + ".inp"));
  const std::vector<Tokens> outputs = outputs_of(contents(path.string() + ".out"));
  // Most files end with a separator, behind which is no string.
  ASSERT_TRUE(inputs.size() == outputs.size() || inputs.size() == outputs.size() + 1);
  ASSERT_GE(outputs.size(), 40u);
  const bool keeps_text = tokenizer->vocabulary().model != "bert";
  for (size_t i = 0; i < outputs.size(); ++i) {
    EXPECT_EQ(tokenizer->encode(inputs[i], kPlain), outputs[i]) << "of \"" << inputs[i] << "\"";
    if (keeps_text) {
      EXPECT_EQ(tokenizer->decode(outputs[i]), inputs[i]);
    }
  }
}

TEST(VocabularySuite, EveryStringOfEveryVocabulary) {
  const char* folder = std::getenv("KVENGINE_VOCABS");
  if (folder == nullptr) {
    GTEST_SKIP() << "KVENGINE_VOCABS is not set: the public vocabulary suite was NOT checked";
  }
  int checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::filesystem::path path = entry.path();
    if (path.extension() != ".gguf" || !std::filesystem::exists(path.string() + ".inp")) continue;
    check_vocabulary(path);
    ++checked;
  }
  std::cout << "checked " << checked << " vocabularies\n";
  EXPECT_GT(checked, 0) << "no vocabularies with .inp and .out in " << folder;
}

}  // namespace
}  // namespace kve::testing
