#include "text/special_tokens.h"

#include <algorithm>
#include <map>
#include <span>

namespace kve {
namespace {

using Names = std::span<const std::string_view>;

// The spellings of roles that files often do not name; the first that exists counts.
constexpr std::string_view kEot[] = {
    "<|eot_id|>",        "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>",   "<EOT>",      "_<EOT>",  "[EOT]",         "<｜end▁of▁sentence｜>",
    "<end_of_utterance>"};
constexpr std::string_view kEom[] = {"<|eom_id|>"};
constexpr std::string_view kFimPrefix[] = {"<|fim_prefix|>",  "<fim-prefix>", "<fim_prefix>",
                                           "<｜fim▁begin｜>", "<PRE>",        "▁<PRE>",
                                           "<|code_prefix|>", "<|prefix|>"};
constexpr std::string_view kFimSuffix[] = {"<|fim_suffix|>",  "<fim-suffix>", "<fim_suffix>",
                                           "<｜fim▁hole｜>",  "<SUF>",        "▁<SUF>",
                                           "<|code_suffix|>", "<|suffix|>"};
constexpr std::string_view kFimMiddle[] = {"<|fim_middle|>",  "<fim-middle>", "<fim_middle>",
                                           "<｜fim▁end｜>",   "<MID>",        "▁<MID>",
                                           "<|code_middle|>", "<|middle|>"};
constexpr std::string_view kFimPad[] = {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"};
constexpr std::string_view kFimRepo[] = {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
                                         "<reponame>"};
constexpr std::string_view kFimSeparator[] = {"<|file_sep|>"};

struct Role {
  Token SpecialTokens::* token;
  Names names;
};
const Role kRoles[] = {{&SpecialTokens::eot, kEot},
                       {&SpecialTokens::eom, kEom},
                       {&SpecialTokens::fim_prefix, kFimPrefix},
                       {&SpecialTokens::fim_suffix, kFimSuffix},
                       {&SpecialTokens::fim_middle, kFimMiddle},
                       {&SpecialTokens::fim_pad, kFimPad},
                       {&SpecialTokens::fim_repo, kFimRepo},
                       {&SpecialTokens::fim_separator, kFimSeparator}};

// Tokens that end an answer wherever they exist.
constexpr std::string_view kEnds[] = {"<|eot_id|>",
                                      "<|im_end|>",
                                      "<|end|>",
                                      "<|return|>",
                                      "<|call|>",
                                      "<|flush|>",
                                      "<|calls|>",
                                      "<end_of_turn>",
                                      "<|endoftext|>",
                                      "</s>",
                                      "<|eom_id|>",
                                      "<EOT>",
                                      "_<EOT>",
                                      "[EOT]",
                                      "[EOS]",
                                      "<|end_of_text|>",
                                      "<end_of_utterance>",
                                      "<eos>",
                                      "<turn|>",
                                      "<|tool_response>",
                                      "<｜end▁of▁sentence｜>",
                                      "[e~["};

// Parts of gpt-oss answers that a reader must see, although they look like control tokens.
constexpr std::string_view kAlwaysText[] = {"<|channel|>", "<|message|>", "<|start|>",
                                            "<|constrain|>"};

class RoleAssigner {
 public:
  RoleAssigner(Vocabulary& vocabulary, const PieceIndex& index)
      : vocabulary_(vocabulary), index_(index) {}

  std::vector<Token> assign() {
    for (const Role& role : kRoles) find_role(role);
    const SpecialTokens& special = vocabulary_.special;
    for (const Token token : {special.fim_pad, special.fim_repo, special.fim_separator, special.eos,
                              special.eot, special.eom}) {
      add_end(token);
    }
    for (const std::string_view name : kEnds) {
      const Token token = index_.find(name);
      add_end(token);
      set_kind(token, TokenKind::control);
    }
    for (const std::string_view name : kAlwaysText) {
      set_kind(index_.find(name), TokenKind::user_defined);
    }
    apply_exceptions();
    std::sort(ends_.begin(), ends_.end());
    return std::move(ends_);
  }

 private:
  Vocabulary& vocabulary_;
  const PieceIndex& index_;
  std::vector<Token> ends_;

  void set_kind(Token token, TokenKind kind) {
    if (token != kNoToken) vocabulary_.kinds[static_cast<size_t>(token)] = kind;
  }
  void add_end(Token token) {
    if (token != kNoToken && !is_end(token)) ends_.push_back(token);
  }
  bool is_end(Token token) const {
    return std::find(ends_.begin(), ends_.end(), token) != ends_.end();
  }
  bool has_end(std::string_view name) const {
    const Token token = index_.find(name);
    return token != kNoToken && is_end(token);
  }
  void remove_end(std::string_view name, TokenKind kind) {
    const Token token = index_.find(name);
    if (std::erase(ends_, token) > 0) set_kind(token, kind);
  }

  void find_role(const Role& role) {
    Token& token = vocabulary_.special.*role.token;
    for (size_t i = 0; i < role.names.size() && token == kNoToken; ++i) {
      token = index_.find(role.names[i]);
      set_kind(token, TokenKind::control);
    }
  }

  // Vocabularies in which a well-known name means something else.
  void apply_exceptions() {
    const bool harmony = has_end("<|return|>") && has_end("<|call|>");
    const bool solar = (has_end("<|call|>") || has_end("<|calls|>")) && has_end("<|flush|>");
    if (harmony || solar) remove_end("<|end|>", TokenKind::user_defined);
    // gemma4 spells markup with an ordinary "</s>".
    if (has_end("<|tool_response>")) remove_end("</s>", TokenKind::normal);
  }
};

bool is_white_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

std::string lower_ascii(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

// Files do not say which tokens swallow white space; these are known by the names of the models.
bool strips_left(const Vocabulary& vocabulary, std::string_view piece) {
  if (contains(vocabulary.pre, "jina-v2-de") || contains(vocabulary.pre, "jina-v2-es") ||
      contains(vocabulary.pre, "jina-v2-code") ||
      contains(vocabulary.architecture, "nomic-bert-moe") ||
      contains(vocabulary.architecture, "jina-bert-v3")) {
    return piece == "<mask>";
  }
  return contains(lower_ascii(vocabulary.model_name), "modern-bert") && piece == "[MASK]";
}

bool is_phi3(const Vocabulary& vocabulary) {
  const std::string name = lower_ascii(vocabulary.model_name);
  return contains(name, "phi-3") || contains(name, "phi3");
}

}  // namespace

std::vector<Token> assign_roles(Vocabulary& vocabulary, const PieceIndex& index) {
  return RoleAssigner(vocabulary, index).assign();
}

SpecialTokenCutter::SpecialTokenCutter(const Vocabulary& vocabulary) {
  const bool phi3 = is_phi3(vocabulary);
  std::map<size_t, Group, std::greater<>> groups;
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const TokenKind kind = vocabulary.kinds[id];
    const std::string_view piece = vocabulary.pieces[id];
    if (kind != TokenKind::control && kind != TokenKind::unknown &&
        kind != TokenKind::user_defined) {
      continue;
    }
    Entry entry{.token = static_cast<Token>(id), .is_text = kind == TokenKind::user_defined};
    entry.strip_left = strips_left(vocabulary, piece);
    entry.strip_right = phi3 && piece != "<unk>" && piece != "<s>" && piece != "<|endoftext|>";
    Group& group = groups[piece.size()];
    group.length = piece.size();
    group.has_text |= entry.is_text;
    group.first[static_cast<uint8_t>(piece[0])] = true;
    group.entries.emplace(piece, entry);
  }
  for (auto& [length, group] : groups) groups_.push_back(std::move(group));
}

void SpecialTokenCutter::cut_part(const Group& group, std::string_view text, bool parse_special,
                                  std::vector<Part>& out) {
  size_t begin = 0;  // of the text that belongs to no part yet
  for (size_t pos = 0; pos + group.length <= text.size(); ++pos) {
    if (!group.first[static_cast<uint8_t>(text[pos])]) continue;
    const auto it = group.entries.find(text.substr(pos, group.length));
    if (it == group.entries.end() || !(it->second.is_text || parse_special)) continue;
    const Entry& entry = it->second;
    size_t left = pos, right = pos + group.length;
    while (entry.strip_left && left > begin && is_white_space(text[left - 1])) --left;
    while (entry.strip_right && right < text.size() && is_white_space(text[right])) ++right;
    if (left > begin) out.push_back({kNoToken, text.substr(begin, left - begin)});
    out.push_back({entry.token, {}});
    begin = right;
    pos = right - 1;
  }
  if (begin < text.size()) out.push_back({kNoToken, text.substr(begin)});
}

std::vector<SpecialTokenCutter::Part> SpecialTokenCutter::cut(std::string_view text,
                                                              bool parse_special) const {
  std::vector<Part> parts, next;
  if (!text.empty()) parts.push_back({kNoToken, text});
  for (const Group& group : groups_) {
    if (!group.has_text && !parse_special) continue;
    next.clear();
    for (const Part& part : parts) {
      if (part.token != kNoToken) {
        next.push_back(part);
      } else {
        cut_part(group, part.text, parse_special, next);
      }
    }
    parts.swap(next);
  }
  return parts;
}

}  // namespace kve
