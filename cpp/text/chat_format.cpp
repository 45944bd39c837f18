#include "text/chat_format.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "base/error.h"
#include "base/printable.h"

namespace kve {
namespace {

// What Python's str.strip() strips, in UTF-8.
constexpr std::array<std::string_view, 29> kSpaces = {
    " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",
    "\x1e",   "\x1f",   "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002",
    "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
    "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};

std::string_view trimmed(std::string_view text) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view space : kSpaces) {
      if (text.starts_with(space)) {
        text.remove_prefix(space.size());
        again = true;
      }
      if (text.ends_with(space)) {
        text.remove_suffix(space.size());
        again = true;
      }
    }
  }
  return text;
}

std::string_view trimmed_if(bool trim, std::string_view text) {
  return trim ? trimmed(text) : text;
}

// What is repeated to the model of an answer that it reasoned about first.
std::string_view answer(ChatFormat::Thinking thinking, std::string_view text) {
  constexpr std::string_view kEnd = "</think>";
  const size_t at = text.rfind(kEnd);
  if (thinking == ChatFormat::Thinking::keep || at == std::string_view::npos) return text;
  text.remove_prefix(at + kEnd.size());
  while (thinking == ChatFormat::Thinking::drop_with_newlines && text.starts_with('\n')) {
    text.remove_prefix(1);
  }
  return text;
}

class Writer {
 public:
  Writer(const ChatFormat& format, const ChatTokens& tokens)
      : format_(format),
        bos_(tokens.bos.empty() ? "<s>" : tokens.bos),
        eos_(tokens.eos.empty() ? format.eos : tokens.eos) {}

  std::string write(std::span<const ChatMessage> messages, bool add_generation_prompt) {
    if (format_.default_system && messages.front().role != "system") {
      turn(format_.system, *format_.default_system);
    }
    const size_t last_user = find_last_user(messages);
    for (size_t i = 0; i < messages.size(); ++i) message_turn(messages[i], i == last_user);
    if (!waiting_.empty()) {
      throw ConfigError(message("messages: expected a user message for chat format '", format_.name,
                                "' to put the system message into, found none"));
    }
    if (add_generation_prompt) out_ += format_.generation;
    return std::move(out_);
  }

 private:
  static size_t find_last_user(std::span<const ChatMessage> messages) {
    size_t last = messages.size();
    for (size_t i = 0; i < messages.size(); ++i) {
      if (messages[i].role == "user") last = i;
    }
    return last;
  }

  void message_turn(const ChatMessage& m, bool last_user) {
    if (m.role == "system") {
      const std::string_view content = trimmed_if(format_.trim.system, m.content);
      if (format_.system_place == ChatFormat::SystemPlace::own_turn) {
        turn(format_.system, content);
      } else {
        waiting_ += format_.system.before;
        waiting_ += content;
        waiting_ += format_.system.after;
      }
    } else if (m.role == "user") {
      user_turn(m.content, last_user);
    } else {
      const std::string_view content = answer(format_.thinking, m.content);
      turn(format_.assistant, trimmed_if(format_.trim.assistant, content));
    }
  }

  void user_turn(std::string_view content, bool last_user) {
    std::string text;
    if (last_user || format_.system_place != ChatFormat::SystemPlace::last_user) {
      text = std::exchange(waiting_, {});
    }
    text += trimmed_if(format_.trim.user, content);
    if (!out_.empty()) append(format_.between);
    turn(format_.user, trimmed_if(format_.trim.user_turn, text));
  }

  void turn(const ChatTurn& around, std::string_view content) {
    append(around.before);
    out_ += content;
    append(around.after);
  }

  // Only what comes from the format is searched for placeholders, never a message.
  void append(std::string_view text) {
    while (!text.empty()) {
      if (text.starts_with("{bos}") || text.starts_with("{eos}")) {
        out_ += text[1] == 'b' ? bos_ : eos_;
        text.remove_prefix(5);
      } else {
        out_ += text.front();
        text.remove_prefix(1);
      }
    }
  }

  const ChatFormat& format_;
  std::string_view bos_;
  std::string_view eos_;
  std::string out_;
  std::string waiting_;  // system text that the next user turn will carry
};

}  // namespace

const ChatFormat& chat_format(std::string_view name) {
  for (const ChatFormat& format : chat_formats()) {
    if (format.name == name) return format;
  }
  std::string known;
  for (const ChatFormat& format : chat_formats()) {
    known += known.empty() ? "" : ", ";
    known += format.name;
  }
  throw UnsupportedError(message("chat format: expected one of ", known, ", found ", quoted(name)));
}

std::vector<std::string_view> chat_format_names() {
  std::vector<std::string_view> names;
  for (const ChatFormat& format : chat_formats()) names.push_back(format.name);
  return names;
}

std::string render_chat(const ChatFormat& format, std::span<const ChatMessage> messages,
                        bool add_generation_prompt, const ChatTokens& tokens) {
  if (messages.empty()) throw ConfigError("messages: expected at least one, found none");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      throw ConfigError(message(
          "messages[", i, "].role: expected system, user or assistant, found ", quoted(role)));
    }
  }
  return Writer(format, tokens).write(messages, add_generation_prompt);
}

}  // namespace kve
