// A chat with a model: messages, the format that writes them, and the session that reads them.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kvengine.h"

namespace tools {

struct Answer {
  std::string text;
  std::vector<kve::Token> tokens;
  std::string finish_reason;
  int prompt_tokens = 0;
  double prompt_seconds = 0;
  double decode_seconds = 0;
  int drafted_tokens = 0;
  int accepted_tokens = 0;
};

class Conversation {
 public:
  // `format_name` empty: recognised from the model's template. Throws UnsupportedError when it is
  // not, ConfigError.
  Conversation(kve::Session& session, const std::string& format_name, const std::string& system);

  // Adds the user's message, streams the answer to `show`, and keeps it. `interrupted` is asked
  // after every token and stops the answer (which is kept as far as it got).
  Answer ask(const std::string& message, kve::GenerateOptions options,
             const std::function<void(std::string_view)>& show,
             const std::function<bool()>& interrupted);
  // Forgets everything but the system message.
  void reset();
  std::string_view format_name() const { return format_->name; }

 private:
  kve::Session& session_;
  const kve::ChatFormat* format_;
  std::string system_;
  std::vector<kve::ChatMessage> messages_;
};

}  // namespace tools
