// The commonest chat formats, built in for programs that carry no Jinja interpreter.
//
// A model's GGUF names its format by a Jinja template (tokenizer.chat_template). Here the template
// is not run but recognised by the markers it contains, as llama.cpp does; the built-in format then
// writes what the template would write for plain system/user/assistant messages. The result never
// begins with the beginning-of-sequence token: encode it with special tokens added and parsed.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kve {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

struct ChatFormat {
  std::string_view name;
  // Texts that end an answer besides the vocabulary's end-of-generation tokens.
  std::vector<std::string_view> stops;
  void (*write)(const ChatFormat&, std::span<const ChatMessage>, bool, std::string&) = nullptr;
};

// nullptr when no built-in format is known to do what the template does.
const ChatFormat* detect_chat_format(std::string_view jinja_template);

// Throws UnsupportedError listing the names.
const ChatFormat& chat_format(std::string_view name);

std::vector<std::string_view> chat_format_names();

// Throws ConfigError for an empty list or an unknown role.
std::string render_chat(const ChatFormat& format, std::span<const ChatMessage> messages,
                        bool add_generation_prompt);

}  // namespace kve
