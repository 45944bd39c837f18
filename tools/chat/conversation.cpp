#include "chat/conversation.h"

namespace tools {
namespace {

const kve::ChatFormat* find_format(const kve::Model& model, const std::string& name) {
  if (!name.empty()) return &kve::chat_format(name);
  if (const kve::ChatFormat* format = kve::detect_chat_format(model.chat_template())) return format;
  std::string known;
  for (const std::string_view format : kve::chat_format_names()) {
    known += known.empty() ? "" : ", ";
    known += format;
  }
  throw kve::UnsupportedError(
      kve::message("chat format: expected a template this program knows, found ",
                   model.chat_template().empty() ? "none in the file" : "another",
                   "; name one with --chat-format (", known, ") or use the Python command line"));
}

}  // namespace

Conversation::Conversation(kve::Session& session, const std::string& format_name,
                           const std::string& system)
    : session_(session), format_(find_format(session.model(), format_name)), system_(system) {
  reset();
}

void Conversation::reset() {
  messages_.clear();
  if (!system_.empty()) messages_.push_back({"system", system_});
}

Answer Conversation::ask(const std::string& message, kve::GenerateOptions options,
                         const std::function<void(std::string_view)>& show,
                         const std::function<bool()>& interrupted) {
  messages_.push_back({"user", message});
  options.stop.emplace_back(format_->stop);
  const kve::Tokenizer& tokenizer = session_.model().tokenizer();
  const auto text_of = [&](kve::Token token) {
    return token == kve::kNoToken ? std::string() : tokenizer.piece(token, true);
  };
  const std::string bos = text_of(tokenizer.bos());
  const std::string eos = text_of(tokenizer.eos());
  const std::string text = kve::render_chat(*format_, messages_, true, {.bos = bos, .eos = eos});
  const std::vector<kve::Token> prompt =
      tokenizer.encode(text, {.add_special = true, .parse_special = true});
  const int reused = session_.reuse_prefix(prompt);
  Answer answer;
  try {
    kve::Generation generation(session_, std::span(prompt).subspan(static_cast<size_t>(reused)),
                               options, [&](int64_t, int64_t) { return !interrupted(); });
    while (auto piece = generation.next()) {
      answer.text += piece->text;
      if (piece->token != kve::kNoToken) answer.tokens.push_back(piece->token);
      if (!piece->text.empty()) show(piece->text);
      if (interrupted()) break;
    }
    answer.finish_reason = generation.finish_reason();
    answer.prompt_tokens = static_cast<int>(prompt.size());
    answer.prompt_seconds = generation.prompt_seconds();
    answer.decode_seconds = generation.decode_seconds();
    answer.drafted_tokens = generation.drafted_tokens();
    answer.accepted_tokens = generation.accepted_tokens();
  } catch (...) {
    messages_.pop_back();
    throw;
  }
  if (answer.finish_reason.empty()) answer.finish_reason = "cancelled";
  messages_.push_back({"assistant", answer.text});
  return answer;
}

}  // namespace tools
