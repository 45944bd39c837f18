#include "text/chat_format.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace kve {
namespace {

namespace fs = std::filesystem;

// White space where templates differ in trimming it, reasoning where they differ in repeating it,
// and a text that must not be taken for a placeholder.
std::vector<ChatMessage> conversation(bool with_system) {
  std::vector<ChatMessage> messages;
  if (with_system) messages.push_back({"system", "Answer briefly.\n"});
  messages.push_back({"user", "  Hello\n"});
  messages.push_back({"assistant", "<think>\nHm.\n</think>\n\nFour."});
  messages.push_back({"user", "Who are you?"});
  messages.push_back({"assistant", "   I am an assistant   "});
  messages.push_back({"user", "Another {eos} question\u3000"});
  return messages;
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<fs::path> templates() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(KVE_TEST_FIXTURES "/chat_templates")) {
    if (entry.path().extension() == ".jinja") paths.push_back(entry.path());
  }
  return paths;
}

// "llama3.1.reduced.jinja" is a template that the format llama3.1 must reproduce.
std::string format_of(const fs::path& path) { return path.stem().stem().string(); }

std::string error_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// The expected texts were written by Hugging Face transformers running the templates; the Python
// tests run them again. Without the leading beginning-of-sequence token; eos is the family's.
TEST(ChatFormat, WritesWhatTheTemplatesWrite) {
  int compared = 0;
  for (const fs::path& path : templates()) {
    SCOPED_TRACE(path.filename());
    const ChatFormat* format = detect_chat_format(read(path));
    ASSERT_NE(format, nullptr);
    EXPECT_EQ(format->name, format_of(path));
    for (const bool with_system : {true, false}) {
      fs::path expected = path;
      expected.replace_extension(with_system ? ".system.txt" : ".plain.txt");
      if (!fs::exists(expected)) continue;  // the template refuses or drops system messages
      EXPECT_EQ(render_chat(*format, conversation(with_system), true), read(expected));
      ++compared;
    }
  }
  EXPECT_GE(compared, 75);
}

// Formats whose models come without a template.
TEST(ChatFormat, WritesFormatsThatHaveNoTemplate) {
  const auto write = [](std::string_view name, bool with_system) {
    return render_chat(chat_format(name), conversation(with_system), true);
  };
  EXPECT_EQ(write("alpaca", false),
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\n  Hello\n\n\n### Response:\n<think>\nHm.\n"
            "</think>\n\nFour.</s>\n\n### Instruction:\nWho are you?\n\n### Response:\n"
            "   I am an assistant   </s>\n\n### Instruction:\nAnother {eos} question\u3000\n\n"
            "### Response:\n");
  EXPECT_EQ(write("stablelm", true),
            "<|system|>\nAnswer briefly.\n<|endoftext|>\n<|user|>\n  Hello\n<|endoftext|>\n"
            "<|assistant|>\n<think>\nHm.\n</think>\n\nFour.<|endoftext|>\n"
            "<|user|>\nWho are you?<|endoftext|>\n<|assistant|>\n   I am an assistant   "
            "<|endoftext|>\n<|user|>\nAnother {eos} question\u3000<|endoftext|>\n<|assistant|>\n");
}

TEST(ChatFormat, EveryFormatIsTestedAndComplete) {
  std::set<std::string> tested = {"alpaca", "stablelm"};
  for (const fs::path& path : templates()) tested.insert(format_of(path));
  std::set<std::string> names;
  for (const ChatFormat& format : chat_formats()) {
    EXPECT_TRUE(names.insert(std::string(format.name)).second) << format.name << " twice";
    EXPECT_FALSE(format.stop.empty()) << format.name;
    EXPECT_EQ(&chat_format(format.name), &format);
    EXPECT_EQ(detect_chat_format(format.name), &format);  // a "template" that is just a name
  }
  EXPECT_EQ(names, tested);
  EXPECT_EQ(chat_format_names().size(), names.size());
}

TEST(ChatFormat, GenerationPromptIsOptional) {
  const std::vector<ChatMessage> messages = {{"user", "Hi"}, {"assistant", "Ho"}};
  EXPECT_EQ(
      render_chat(chat_format("smollm"), messages, false),
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
      "Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n");
  EXPECT_EQ(render_chat(chat_format("gemma"), messages, true),
            "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHo<end_of_turn>\n"
            "<start_of_turn>model\n");
}

TEST(ChatFormat, UsesTheTokensOfTheVocabulary) {
  const std::vector<ChatMessage> messages = {{"user", "a"}, {"assistant", "b"}, {"user", "c"}};
  EXPECT_EQ(render_chat(chat_format("zephyr"), messages, true, {.eos = "<|endoftext|>"}),
            "<|user|>\na<|endoftext|>\n<|assistant|>\nb<|endoftext|>\n<|user|>\nc<|endoftext|>\n"
            "<|assistant|>\n");
  EXPECT_EQ(
      render_chat(chat_format("llama2-sys-bos"), messages, true, {.bos = "<B>", .eos = "<E>"}),
      "[INST] a [/INST] b <E><B>[INST] c [/INST]");
}

TEST(ChatFormat, PutsSystemMessagesWhereTheFormatHasThem) {
  const std::vector<ChatMessage> messages = {
      {"system", "S"}, {"user", "a"}, {"assistant", "b"}, {"system", "T"}, {"user", "c"}};
  EXPECT_EQ(render_chat(chat_format("mistral-v1"), messages, true),
            " [INST] S\n\na [/INST] b</s> [INST] T\n\nc [/INST]");
  EXPECT_EQ(render_chat(chat_format("mistral-v3-tekken"), messages, true),
            "[INST]a[/INST]b</s>[INST]S\n\nT\n\nc[/INST]");
  EXPECT_EQ(render_chat(chat_format("mistral-v7-tekken"), messages, true),
            "[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]a[/INST]b</s>[SYSTEM_PROMPT]T[/SYSTEM_PROMPT]"
            "[INST]c[/INST]");
}

TEST(ChatFormat, TrimsAsPythonDoes) {
  const std::string padded = " \t\n\v\f\r\x1c\x1f\u0085\u00a0\u1680\u2003\u2028\u202f\u205f\u3000";
  const std::vector<ChatMessage> messages = {{"user", padded + "\u200b x\xa0y " + padded}};
  EXPECT_EQ(render_chat(chat_format("llama3"), messages, false),
            "<|start_header_id|>user<|end_header_id|>\n\n\u200b x\xa0y<|eot_id|>");
  EXPECT_EQ(render_chat(chat_format("llama3"), std::vector<ChatMessage>{{"user", padded}}, false),
            "<|start_header_id|>user<|end_header_id|>\n\n<|eot_id|>");
}

TEST(ChatFormat, DoesNotClaimWhatItCannotWrite) {
  for (const std::string_view unknown :
       {"", " ", "{{ messages }}",
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<end_of_utterance>",
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}",
        "{{ '### Instruction:\\n' }}{{ '### Response:\\n' }}"}) {
    EXPECT_EQ(detect_chat_format(unknown), nullptr) << unknown;
  }
}

TEST(ChatFormat, RefusesBadInput) {
  const std::string unknown = error_of([] { chat_format("nonsense\n"); });
  EXPECT_TRUE(unknown.starts_with("chat format: expected one of chatml, smollm, qwen")) << unknown;
  EXPECT_TRUE(unknown.ends_with(", found 'nonsense\\n'")) << unknown;
  EXPECT_THROW(chat_format(""), UnsupportedError);
  const auto refused = [](std::string_view name, std::vector<ChatMessage> messages) {
    EXPECT_THROW(render_chat(chat_format(name), messages, true), ConfigError);
    return error_of([&] { render_chat(chat_format(name), messages, true); });
  };
  EXPECT_EQ(refused("chatml", {}), "messages: expected at least one, found none");
  EXPECT_EQ(refused("chatml", {{"user", "a"}, {"tool", "b"}}),
            "messages[1].role: expected system, user or assistant, found 'tool'");
  EXPECT_EQ(refused("gemma", {{"user", "a"}, {"system", "b"}}),
            "messages: expected a user message for chat format 'gemma' to put the system message "
            "into, found none");
}

}  // namespace
}  // namespace kve
