// The built-in chat formats, and how they are recognised. A new one is a line in each of the two
// lists, and a template with its rendering under tests/fixtures/chat_templates.
#include <array>

#include "text/chat_format.h"

namespace kve {
namespace {

using Place = ChatFormat::SystemPlace;
using Thinking = ChatFormat::Thinking;

constexpr ChatFormat chatml(std::string_view name, std::optional<std::string_view> default_system,
                            Thinking thinking = Thinking::keep) {
  return {.name = name,
          .system = {"<|im_start|>system\n", "<|im_end|>\n"},
          .user = {"<|im_start|>user\n", "<|im_end|>\n"},
          .assistant = {"<|im_start|>assistant\n", "<|im_end|>\n"},
          .generation = "<|im_start|>assistant\n",
          .stop = "<|im_end|>",
          .default_system = default_system,
          .thinking = thinking};
}

// Every answer begins by reasoning.
constexpr ChatFormat reasoning_chatml(std::string_view name, bool strip) {
  ChatFormat format = chatml(name, {}, Thinking::drop_with_newlines);
  format.generation = "<|im_start|>assistant\n<think>\n";
  format.trim = {.system = strip, .user = strip, .assistant = strip};
  return format;
}

// arXiv:2307.09288 and its descendants: the system text is a part of the first user turn.
constexpr ChatFormat llama2(std::string_view name, bool strip, bool repeats_bos) {
  return {.name = name,
          .system = {"<<SYS>>\n", "\n<</SYS>>\n\n"},
          .user = {"[INST] ", " [/INST]"},
          .assistant = {" ", " {eos}"},
          .generation = {},
          .stop = "</s>",
          .between = repeats_bos ? "{bos}" : "",
          .system_place = Place::first_user,
          .trim = {.assistant = strip, .user_turn = strip}};
}

constexpr ChatFormat headed(std::string_view name, std::string_view system_intro,
                            std::optional<std::string_view> default_system) {
  return {.name = name,
          .system = {system_intro, "<|eot_id|>"},
          .user = {"<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"},
          .assistant = {"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"},
          .generation = "<|start_header_id|>assistant<|end_header_id|>\n\n",
          .stop = "<|eot_id|>",
          .default_system = default_system,
          .trim = {.system = true, .user = true, .assistant = true}};
}

constexpr ChatFormat deepseek(std::string_view name, std::string_view generation) {
  return {.name = name,
          .system = {},
          .user = {"<｜User｜>", ""},
          .assistant = {"<｜Assistant｜>", "{eos}"},
          .generation = generation,
          .stop = "<｜end▁of▁sentence｜>",
          .eos = "<｜end▁of▁sentence｜>",
          .thinking = Thinking::drop};
}

constexpr ChatFormat granite(std::string_view name,
                             std::optional<std::string_view> default_system) {
  return {.name = name,
          .system = {"<|start_of_role|>system<|end_of_role|>", "<|end_of_text|>\n"},
          .user = {"<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n"},
          .assistant = {"<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>\n"},
          .generation = "<|start_of_role|>assistant<|end_of_role|>",
          .stop = "<|end_of_text|>",
          .default_system = default_system};
}

// <|role|> on a line of its own; `after` ends a system or user turn, `answered` an assistant's.
constexpr ChatFormat barred(std::string_view name, std::string_view after,
                            std::string_view answered, std::string_view stop) {
  return {.name = name,
          .system = {"<|system|>\n", after},
          .user = {"<|user|>\n", after},
          .assistant = {"<|assistant|>\n", answered},
          .generation = "<|assistant|>\n",
          .stop = stop,
          .eos = stop};
}

constexpr std::array kFormats = {
    chatml("chatml", {}),
    chatml("smollm", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    chatml("qwen", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    chatml("qwen2", "You are a helpful assistant."),
    chatml("qwen1.5", "You are a helpful assistant"),
    chatml("qwen3", {}, Thinking::drop_with_newlines),
    reasoning_chatml("qwen3-thinking", false),
    reasoning_chatml("qwen3.5", true),
    // Mistral 7B Instruct 0.1 and 0.2, which know no system message.
    ChatFormat{.name = "llama2",
               .system = {"", "\n"},
               .user = {"[INST] ", " [/INST]"},
               .assistant = {"", "{eos}"},
               .generation = {},
               .stop = "</s>",
               .system_place = Place::first_user},
    llama2("llama2-sys", false, false),
    llama2("llama2-sys-bos", false, true),
    llama2("llama2-sys-strip", true, false),
    llama2("llama2-sys-bos-strip", true, true),
    headed("llama3", "<|start_header_id|>system<|end_header_id|>\n\n", {}),
    // The date is the template's own when it is given none.
    headed("llama3.1",
           "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
           "Today Date: 26 Jul 2024\n\n",
           ""),
    ChatFormat{.name = "gemma",
               .system = {"", "\n\n"},
               .user = {"<start_of_turn>user\n", "<end_of_turn>\n"},
               .assistant = {"<start_of_turn>model\n", "<end_of_turn>\n"},
               .generation = "<start_of_turn>model\n",
               .stop = "<end_of_turn>",
               .system_place = Place::first_user,
               .trim = {.user = true, .assistant = true}},
    ChatFormat{.name = "mistral-v1",
               .system = {"", "\n\n"},
               .user = {" [INST] ", " [/INST]"},
               .assistant = {" ", "{eos}"},
               .generation = {},
               .stop = "</s>",
               .system_place = Place::first_user},
    ChatFormat{.name = "mistral-v3",
               .system = {"", "\n\n"},
               .user = {"[INST] ", "[/INST]"},
               .assistant = {" ", "{eos}"},
               .generation = {},
               .stop = "</s>",
               .system_place = Place::last_user,
               .trim = {.assistant = true}},
    ChatFormat{.name = "mistral-v3-tekken",
               .system = {"", "\n\n"},
               .user = {"[INST]", "[/INST]"},
               .assistant = {"", "{eos}"},
               .generation = {},
               .stop = "</s>",
               .system_place = Place::last_user},
    ChatFormat{.name = "mistral-v7",
               .system = {"[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"},
               .user = {"[INST] ", "[/INST]"},
               .assistant = {" ", "{eos}"},
               .generation = {},
               .stop = "</s>"},
    ChatFormat{.name = "mistral-v7-tekken",
               .system = {"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
               .user = {"[INST]", "[/INST]"},
               .assistant = {"", "{eos}"},
               .generation = {},
               .stop = "</s>"},
    barred("zephyr", "{eos}\n", "{eos}\n", "</s>"),
    barred("stablelm", "<|endoftext|>\n", "<|endoftext|>\n", "<|endoftext|>"),
    barred("falcon3", "\n", "{eos}\n", "<|endoftext|>"),
    barred("phi3", "<|end|>\n", "<|end|>\n", "<|end|>"),
    ChatFormat{.name = "phi4",
               .system = {"<|im_start|>system<|im_sep|>", "<|im_end|>"},
               .user = {"<|im_start|>user<|im_sep|>", "<|im_end|>"},
               .assistant = {"<|im_start|>assistant<|im_sep|>", "<|im_end|>"},
               .generation = "<|im_start|>assistant<|im_sep|>",
               .stop = "<|im_end|>"},
    ChatFormat{.name = "phi4-mini",
               .system = {"<|system|>", "<|end|>"},
               .user = {"<|user|>", "<|end|>"},
               .assistant = {"<|assistant|>", "<|end|>"},
               .generation = "<|assistant|>",
               .stop = "<|end|>"},
    ChatFormat{.name = "deepseek",
               .system = {},
               .user = {"### Instruction:\n", "\n"},
               .assistant = {"### Response:\n", "\n<|EOT|>\n"},
               .generation = "### Response:\n",
               .stop = "<|EOT|>",
               .default_system =
                   "You are an AI programming assistant, utilizing the Deepseek Coder model, "
                   "developed by Deepseek Company, and you only answer questions related to "
                   "computer science. For politically sensitive questions, security and privacy "
                   "issues, and other non-computer science questions, you will refuse to answer\n"},
    ChatFormat{.name = "deepseek2",
               .system = {"", "\n\n"},
               .user = {"User: ", "\n\n"},
               .assistant = {"Assistant: ", "{eos}"},
               .generation = "Assistant:",
               .stop = "<｜end▁of▁sentence｜>",
               .eos = "<｜end▁of▁sentence｜>"},
    deepseek("deepseek3", "<｜Assistant｜>"),
    deepseek("deepseek-r1", "<｜Assistant｜><think>\n"),
    ChatFormat{.name = "command-r",
               .system = {"<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"},
               .user = {"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"},
               .assistant = {"<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"},
               .generation = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
               .stop = "<|END_OF_TURN_TOKEN|>",
               .trim = {.user = true, .assistant = true}},
    granite("granite", {}),
    granite("granite4",
            "You are a helpful assistant. Please ensure responses are professional, accurate, and "
            "safe."),
    ChatFormat{.name = "openchat",
               .system = {"GPT4 Correct System: ", "<|end_of_turn|>"},
               .user = {"GPT4 Correct User: ", "<|end_of_turn|>"},
               .assistant = {"GPT4 Correct Assistant: ", "<|end_of_turn|>"},
               .generation = "GPT4 Correct Assistant:",
               .stop = "<|end_of_turn|>"},
    ChatFormat{.name = "vicuna",
               .system = {"", "\n\n"},
               .user = {"USER: ", "\n"},
               .assistant = {"ASSISTANT: ", "</s>\n"},
               .generation = "ASSISTANT:",
               .stop = "USER:"},
    ChatFormat{.name = "vicuna-orca",
               .system = {"SYSTEM: ", "\n"},
               .user = {"USER: ", "\n"},
               .assistant = {"ASSISTANT: ", "</s>\n"},
               .generation = "ASSISTANT:",
               .stop = "USER:"},
    ChatFormat{.name = "alpaca",
               .system = {"", "\n\n"},
               .user = {"### Instruction:\n", "\n\n"},
               .assistant = {"### Response:\n", "{eos}\n\n"},
               .generation = "### Response:\n",
               .stop = "### Instruction:",
               .default_system = "Below is an instruction that describes a task. Write a response "
                                 "that appropriately completes the request."},
    ChatFormat{.name = "rwkv-world",
               .system = {"System: ", "\n\n"},
               .user = {"User: ", "\n\n"},
               .assistant = {"Assistant: ", "\n\n"},
               .generation = "Assistant:",
               .stop = "\n\nUser:",
               .trim = {.user = true, .assistant = true},
               .thinking = Thinking::drop},
};

// The first rule whose markers all occur decides. An empty format: known, and not built in.
struct Rule {
  std::string_view format;
  std::array<std::string_view, 3> markers;
};

constexpr std::array kRules = {
    Rule{"phi4", {"<|im_start|>", "<|im_sep|>"}},
    Rule{"", {"<|im_start|>", "<end_of_utterance>"}},      // SmolVLM, which is not ChatML
    Rule{"", {"<|im_start|>", "## Metadata"}},             // SmolLM3
    Rule{"", {"<|im_start|>", "truncate_history_think"}},  // Nemotron 3
    Rule{"smollm", {"<|im_start|>", "named SmolLM, trained by Hugging Face"}},
    Rule{"qwen", {"<|im_start|>", "You are Qwen, created by Alibaba Cloud."}},
    Rule{"qwen2", {"<|im_start|>", "You are a helpful assistant.<|im_end|>"}},
    Rule{"qwen1.5", {"<|im_start|>", "You are a helpful assistant<|im_end|>"}},
    Rule{"qwen3.5", {"|trim %}", "</think>", "'<think>\\n' }}"}},
    Rule{"qwen3-thinking", {"</think>", "'<|im_start|>assistant\\n<think>\\n'"}},
    Rule{"qwen3", {"<|im_start|>", "</think>"}},
    Rule{"chatml", {"<|im_start|>"}},
    Rule{"mistral-v7", {"[INST]", "[SYSTEM_PROMPT] "}},
    Rule{"mistral-v7-tekken", {"[INST]", "[SYSTEM_PROMPT]"}},
    Rule{"mistral-v1", {"' [INST] ' + system_message"}},
    Rule{"mistral-v1", {" [INST]", "[AVAILABLE_TOOLS]"}},
    Rule{"mistral-v3-tekken", {"\"[INST]\"", "[AVAILABLE_TOOLS]"}},
    Rule{"mistral-v3", {"[INST]", "[AVAILABLE_TOOLS]"}},
    Rule{"llama2-sys-bos-strip", {"<<SYS>>", "bos_token + '[INST]", "content.strip()"}},
    Rule{"llama2-sys-strip", {"<<SYS>>", "[INST]", "content.strip()"}},
    Rule{"llama2-sys-bos", {"<<SYS>>", "bos_token + '[INST]"}},
    Rule{"llama2-sys", {"<<SYS>>", "[INST]"}},
    Rule{"llama2", {"[INST]"}},
    Rule{"", {"<|end|>", "thought_instructions"}},  // Apriel
    Rule{"phi4-mini", {"'|>' + message['content'] + '<|end|>'"}},
    Rule{"phi3", {"<|assistant|>", "<|end|>"}},
    Rule{"zephyr", {"'<|user|>\\n' + message['content'] + eos_token", "<|assistant|>"}},
    Rule{"zephyr", {"'<|user|>\n' + message['content'] + eos_token", "<|assistant|>"}},
    Rule{"falcon3", {"'<|user|>\\n' + message['content'] + '\\n'", "<|assistant|>"}},
    Rule{"falcon3", {"'<|user|>\n' + message['content'] + '\n'", "<|assistant|>"}},
    Rule{"falcon3", {"'<|user|>' + '\\n' + message['content'] + '\\n'", "<|assistant|>"}},
    Rule{"falcon3", {"'<|user|>' + '\n' + message['content'] + '\n'", "<|assistant|>"}},
    Rule{"gemma", {"<start_of_turn>"}},
    Rule{"openchat", {"GPT4 Correct "}},
    Rule{"vicuna-orca", {"USER: ", "ASSISTANT: ", "SYSTEM: "}},
    Rule{"vicuna", {"USER: ", "ASSISTANT: "}},
    Rule{"deepseek", {"### Instruction:", "<|EOT|>"}},
    Rule{"", {"<|START_OF_TURN_TOKEN|>", "<|START_RESPONSE|>"}},  // Command R7B
    Rule{"command-r", {"<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>"}},
    Rule{"", {"<|start_header_id|>", "<function="}},  // Functionary
    Rule{"", {"<|start_header_id|>", ">>>all"}},      // Functionary
    Rule{"llama3.1", {"<|start_header_id|>", "Cutting Knowledge Date: December 2023"}},
    Rule{"llama3", {"<|start_header_id|>", "<|end_header_id|>"}},
    Rule{"deepseek2", {"'Assistant: ' + message['content'] + eos_token"}},
    Rule{"deepseek-r1", {"<｜User｜>", "<｜Assistant｜><think>\\n'"}},
    Rule{"", {"<｜Assistant｜>", "thinking"}},  // DeepSeek V3.1 and later
    Rule{"deepseek3", {"<｜User｜>", "<｜Assistant｜>"}},
    Rule{"rwkv-world", {"'User: ' + message['content']|trim + '"}},
    Rule{"granite4", {"<|start_of_role|>", "Please ensure responses are professional, accurate"}},
    Rule{"granite", {"<|start_of_role|>"}},
};

bool holds(const Rule& rule, std::string_view text) {
  for (const std::string_view marker : rule.markers) {
    // An empty marker is in any text.
    if (text.find(marker) == std::string_view::npos) return false;
  }
  return true;
}

}  // namespace

std::span<const ChatFormat> chat_formats() { return kFormats; }

const ChatFormat* detect_chat_format(std::string_view jinja_template) {
  for (const ChatFormat& format : kFormats) {
    if (format.name == jinja_template) return &format;
  }
  for (const Rule& rule : kRules) {
    if (holds(rule, jinja_template)) {
      return rule.format.empty() ? nullptr : &chat_format(rule.format);
    }
  }
  return nullptr;
}

}  // namespace kve
