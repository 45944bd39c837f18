#include "engine/prompt_repeat.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "engine/model.h"
#include "text/chat_format.h"

namespace kve {
namespace {

// Tokens of the part before that say where a part begins.
constexpr int kLastOfPart = 8;

// What follows the text of a user's message up to the answer. Templates that are not among the
// built-in formats, and models that have none, get a line break.
std::string before_answer(const Model& model) {
  const ChatFormat* format = detect_chat_format(model.chat_template());
  if (model.chat_template().empty() || format == nullptr) return "\n";
  const Tokenizer& tokenizer = model.tokenizer();
  const auto text_of = [&](Token token) {
    return token == kNoToken ? std::string() : tokenizer.piece(token, true);
  };
  const std::string bos = text_of(tokenizer.bos());
  const std::string eos = text_of(tokenizer.eos());
  const std::string question = "question";
  const ChatMessage message{"user", question};
  const std::string chat = render_chat(*format, {&message, 1}, true, {.bos = bos, .eos = eos});
  return chat.substr(chat.rfind(question) + question.size());
}

}  // namespace

PromptRepeat::PromptRepeat(const Model& model, int chunk, int n_tokens)
    : chunk_(chunk), n_tokens_(n_tokens) {
  const auto encoded = [&](std::string_view text, bool parse_special) {
    return model.tokenizer().encode(text, {.add_special = false, .parse_special = parse_special});
  };
  whole_ = encoded("\n\nRepeat the previous context exactly.", false);
  from_ = encoded("\n\nRepeat the part of the previous context exactly, starting with", false);
  answer_ = encoded(before_answer(model), true);
}

PromptRepeat::Part PromptRepeat::part(int index) const {
  const int first = index * chunk_;
  return {first, std::min(n_tokens_ - first, chunk_) + first};
}

std::vector<Token> PromptRepeat::tokens(int index, std::span<const Token> prompt) const {
  const auto [first, end] = part(index);
  std::vector<Token> out = index == 0 ? whole_ : from_;
  const auto add = [&](int from, int to) {
    out.insert(out.end(), prompt.begin() + from, prompt.begin() + to);
  };
  if (index > 0) add(std::max(first - kLastOfPart, first - chunk_), first);
  out.insert(out.end(), answer_.begin(), answer_.end());
  add(first, end);
  return out;
}

int64_t PromptRepeat::total() const {
  const int64_t others = n_parts() - 1;
  const int64_t before = std::min(kLastOfPart, chunk_);
  return n_tokens_ + n_parts() * std::ssize(answer_) + std::ssize(whole_) +
         others * (std::ssize(from_) + before);
}

}  // namespace kve
