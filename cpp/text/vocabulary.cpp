#include "text/vocabulary.h"

#include "base/error.h"
#include "base/printable.h"
#include "gguf/gguf_file.h"

namespace kve {
namespace {

struct RoleKey {
  std::string_view key;
  Token SpecialTokens::* token;
};
// "seperator" is how the format spells it.
constexpr RoleKey kRoleKeys[] = {
    {"tokenizer.ggml.bos_token_id", &SpecialTokens::bos},
    {"tokenizer.ggml.eos_token_id", &SpecialTokens::eos},
    {"tokenizer.ggml.eot_token_id", &SpecialTokens::eot},
    {"tokenizer.ggml.eom_token_id", &SpecialTokens::eom},
    {"tokenizer.ggml.unknown_token_id", &SpecialTokens::unk},
    {"tokenizer.ggml.seperator_token_id", &SpecialTokens::sep},
    {"tokenizer.ggml.padding_token_id", &SpecialTokens::pad},
    {"tokenizer.ggml.cls_token_id", &SpecialTokens::cls},
    {"tokenizer.ggml.mask_token_id", &SpecialTokens::mask},
    {"tokenizer.ggml.prefix_token_id", &SpecialTokens::fim_prefix},  // the older three
    {"tokenizer.ggml.suffix_token_id", &SpecialTokens::fim_suffix},
    {"tokenizer.ggml.middle_token_id", &SpecialTokens::fim_middle},
    {"tokenizer.ggml.fim_pre_token_id", &SpecialTokens::fim_prefix},
    {"tokenizer.ggml.fim_suf_token_id", &SpecialTokens::fim_suffix},
    {"tokenizer.ggml.fim_mid_token_id", &SpecialTokens::fim_middle},
    {"tokenizer.ggml.fim_pad_token_id", &SpecialTokens::fim_pad},
    {"tokenizer.ggml.fim_rep_token_id", &SpecialTokens::fim_repo},
    {"tokenizer.ggml.fim_sep_token_id", &SpecialTokens::fim_separator},
};

// The roles that vocabularies of a model have when their file is silent.
SpecialTokens conventional_roles(const Vocabulary& vocabulary) {
  SpecialTokens out;
  if (vocabulary.model == "llama") {
    out.unk = 0, out.bos = 1, out.eos = 2;
  } else if (vocabulary.model == "bert") {
    out.pad = 0, out.unk = 100, out.bos = 101, out.sep = 102, out.mask = 103;
  } else if (vocabulary.model == "t5") {
    out.pad = 0, out.eos = 1, out.unk = 2;
  } else if (vocabulary.model == "gpt2" && (vocabulary.pre.empty() || vocabulary.pre == "default" ||
                                            vocabulary.pre == "falcon")) {
    out.bos = out.eos = 11;  // files of that age are Falcon's
  }
  return out;
}

void read_roles(const Metadata& metadata, Vocabulary& vocabulary) {
  vocabulary.special = conventional_roles(vocabulary);
  const int64_t n = static_cast<int64_t>(vocabulary.pieces.size());
  for (const RoleKey& role : kRoleKeys) {
    Token& token = vocabulary.special.*role.token;
    if (token >= n) token = kNoToken;
    const MetaValue* value = metadata.find(role.key);
    if (value == nullptr) continue;
    const int64_t id = value->as_int64();
    if (id >= 0 && id < n) token = static_cast<Token>(id);
  }
}

std::optional<bool> read_flag(const Metadata& metadata, std::string_view key) {
  const MetaValue* value = metadata.find(key);
  return value == nullptr ? std::nullopt : std::optional<bool>(value->as_bool());
}

std::vector<TokenKind> read_kinds(const Metadata& metadata) {
  const MetaValue* value = metadata.find("tokenizer.ggml.token_type");
  if (value == nullptr) return {};
  std::vector<TokenKind> out;
  out.reserve(value->size());
  for (const int64_t kind : value->integers()) {
    if (kind < 0 || kind > 6) {
      throw FormatError(message("tokenizer.ggml.token_type[", out.size(),
                                "]: expected a number from 0 to 6, found ", kind));
    }
    // 0 means undefined: no text stands for such a token.
    out.push_back(kind == 0 ? TokenKind::unused : static_cast<TokenKind>(kind));
  }
  return out;
}

std::string read_charsmap(const Metadata& metadata) {
  const MetaValue* value = metadata.find("tokenizer.ggml.precompiled_charsmap");
  if (value == nullptr) return {};
  const MetaType type = value->element_type();
  if (!value->is_array() || (type != MetaType::u8 && type != MetaType::i8)) {
    throw FormatError(
        message("tokenizer.ggml.precompiled_charsmap: expected an array of bytes, "
                "found ",
                value->type_name()));
  }
  return {reinterpret_cast<const char*>(value->payload().data()), value->payload().size()};
}

void read_flags(const Metadata& metadata, Vocabulary& vocabulary) {
  vocabulary.add_bos = read_flag(metadata, "tokenizer.ggml.add_bos_token");
  vocabulary.add_eos = read_flag(metadata, "tokenizer.ggml.add_eos_token");
  vocabulary.add_sep = read_flag(metadata, "tokenizer.ggml.add_sep_token");
  vocabulary.add_space_prefix = read_flag(metadata, "tokenizer.ggml.add_space_prefix");
  vocabulary.remove_extra_whitespaces =
      read_flag(metadata, "tokenizer.ggml.remove_extra_whitespaces");
  vocabulary.escape_whitespaces = read_flag(metadata, "tokenizer.ggml.escape_whitespaces");
  vocabulary.lower_case = read_flag(metadata, "tokenizer.ggml.normalizer.lowercase");
  vocabulary.strip_accents = read_flag(metadata, "tokenizer.ggml.normalizer.strip_accents");
}

}  // namespace

Vocabulary read_vocabulary(const GgufFile& file) {
  const Metadata& metadata = file.metadata();
  Vocabulary out;
  out.model = metadata.get_or<std::string>("tokenizer.ggml.model", "");
  if (out.model.empty() || out.model == "none" || out.model == "no_vocab") {
    throw UnsupportedError(message(file.path().string(),
                                   ": expected a vocabulary (tokenizer.ggml.model), found none"));
  }
  out.pre = metadata.get_or<std::string>("tokenizer.ggml.pre", "");
  out.architecture = metadata.get_or<std::string>("general.architecture", "");
  out.model_name = metadata.get_or<std::string>("general.name", "");
  out.pieces = metadata.get<std::vector<std::string>>("tokenizer.ggml.tokens");
  out.scores = metadata.get_or<std::vector<float>>("tokenizer.ggml.scores", {});
  out.kinds = read_kinds(metadata);
  out.merges = metadata.get_or<std::vector<std::string>>("tokenizer.ggml.merges", {});
  out.precompiled_charsmap = read_charsmap(metadata);
  read_roles(metadata, out);
  read_flags(metadata, out);
  return out;
}

}  // namespace kve
