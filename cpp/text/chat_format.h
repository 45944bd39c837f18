// The commonest chat formats, built in for programs that carry no Jinja interpreter.
//
// A GGUF file names its model's format by a Jinja template (tokenizer.chat_template). Here the
// template is not run but recognised by the markers it contains, and the built-in format writes
// what the template would write for system, user and assistant messages. The result never begins
// with the beginning-of-sequence token: encode it with special tokens added and parsed.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kve {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// Written before and after the content of a message. "{bos}" and "{eos}" stand for the texts of the
// vocabulary's special tokens.
struct ChatTurn {
  std::string_view before;
  std::string_view after;
};

// A format as data; the list is in chat_format_list.cpp.
struct ChatFormat {
  // Where the text of system messages goes, `system` written around it.
  enum class SystemPlace {
    own_turn,
    first_user,  // in front of the next user message
    last_user,   // in front of the last user message
  };
  // Contents whose surrounding white space is dropped.
  struct Trim {
    bool system = false;
    bool user = false;  // without the system text in front of it
    bool assistant = false;
    bool user_turn = false;  // with the system text in front of it
  };
  // Of an assistant's earlier text: all, only what follows </think>, or that without the newlines
  // in front of it.
  enum class Thinking { keep, drop, drop_with_newlines };

  std::string_view name;
  ChatTurn system;
  ChatTurn user;
  ChatTurn assistant;
  std::string_view generation;  // opens the answer that is to be generated
  // What the model writes to end an answer, and should: a token where the vocabulary has one of
  // this text, else a stop string.
  std::string_view stop;
  std::string_view eos = "</s>";
  std::string_view between = {};  // written before every user turn but the first
  std::optional<std::string_view> default_system = {};  // when the first message is none
  SystemPlace system_place = SystemPlace::own_turn;
  Trim trim = {};
  Thinking thinking = Thinking::keep;
};

// The texts of the vocabulary's tokens; those left empty are the format's own.
struct ChatTokens {
  std::string_view bos = {};
  std::string_view eos = {};
};

std::span<const ChatFormat> chat_formats();

// By name. Throws UnsupportedError listing the names.
const ChatFormat& chat_format(std::string_view name);

std::vector<std::string_view> chat_format_names();

// nullptr when no built-in format is known to do what the template does. A template may also be
// just the name of a format.
const ChatFormat* detect_chat_format(std::string_view jinja_template);

// Throws ConfigError for an empty list, an unknown role, or a system message with no user message
// to put it into.
std::string render_chat(const ChatFormat& format, std::span<const ChatMessage> messages,
                        bool add_generation_prompt, const ChatTokens& tokens = {});

}  // namespace kve
