#include "text/tokenizer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/printable.h"
#include "text/algorithm.h"
#include "text/special_tokens.h"

namespace kve {
namespace {

// Offsets within a text are 32-bit numbers, also after its spaces have become three bytes each.
constexpr size_t kLongestText = size_t{512} << 20;
// Far above every real vocabulary; bounds the work that one place of a text can cost.
constexpr size_t kLongestPiece = size_t{16} << 10;

struct Model {
  std::string_view name;
  MakeAlgorithm make;
};
constexpr Model kModels[] = {{"gpt2", make_bpe},   {"gemma4", make_bpe},     {"llama", make_spm},
                             {"t5", make_unigram}, {"bert", make_wordpiece}, {"rwkv", make_rwkv}};

const Model& find_model(std::string_view name) {
  std::string known;
  for (const Model& model : kModels) {
    if (model.name == name) return model;
    known.append(known.empty() ? "" : ", ").append(model.name);
  }
  throw UnsupportedError(
      message("tokenizer.ggml.model: expected one of ", known, ", found ", quoted(name)));
}

void check_size(std::string_view key, size_t size, size_t expected) {
  if (size == expected) return;
  throw FormatError(message(key, ": expected ", expected, " entries, found ", size));
}

// Fills optional tables and checks that the tables agree.
Vocabulary complete(Vocabulary vocabulary) {
  const size_t n = vocabulary.pieces.size();
  if (n == 0 || n > INT32_MAX / 2) {
    throw FormatError(message("tokenizer.ggml.tokens: expected 1 to 2^30 pieces, found ", n));
  }
  if (vocabulary.kinds.empty()) vocabulary.kinds.assign(n, TokenKind::normal);
  check_size("tokenizer.ggml.token_type", vocabulary.kinds.size(), n);
  if (!vocabulary.scores.empty()) {
    check_size("tokenizer.ggml.scores", vocabulary.scores.size(), n);
  }
  for (size_t id = 0; id < n; ++id) {
    if (!vocabulary.scores.empty() && std::isnan(vocabulary.scores[id])) {
      throw FormatError(message("tokenizer.ggml.scores[", id, "]: expected a number, found NaN"));
    }
    std::string& piece = vocabulary.pieces[id];
    if (piece.size() > kLongestPiece) {
      throw FormatError(message("tokenizer.ggml.tokens[", id, "]: expected at most ", kLongestPiece,
                                " bytes, found ", piece.size()));
    }
    // Some vocabularies have holes.
    if (piece.empty()) piece = message("[EMPTY_", id, "]");
    if (vocabulary.kinds[id] == TokenKind::byte && byte_value(piece) < 0) {
      throw FormatError(message("tokenizer.ggml.tokens[", id,
                                "]: expected a byte token like <0x0A>, found ", quoted(piece)));
    }
  }
  const SpecialTokens& special = vocabulary.special;
  for (const Token token :
       {special.bos, special.eos, special.eot, special.eom, special.unk, special.sep, special.pad,
        special.cls, special.mask, special.fim_prefix, special.fim_suffix, special.fim_middle,
        special.fim_pad, special.fim_repo, special.fim_separator}) {
    if (token != kNoToken && (token < 0 || static_cast<size_t>(token) >= n)) {
      throw FormatError(message("special token: expected an id below ", n, ", found ", token));
    }
  }
  return vocabulary;
}

}  // namespace

struct Tokenizer::Parts {
  explicit Parts(Vocabulary& vocabulary)
      : index(vocabulary.pieces),
        ends(assign_roles(vocabulary, index)),
        cutter(vocabulary),
        algorithm(find_model(vocabulary.model).make(vocabulary, index)) {}

  PieceIndex index;
  std::vector<Token> ends;  // sorted
  SpecialTokenCutter cutter;
  std::unique_ptr<const TokenizerAlgorithm> algorithm;
};

std::unique_ptr<const Tokenizer> Tokenizer::create(Vocabulary vocabulary) {
  return std::unique_ptr<const Tokenizer>(new Tokenizer(std::move(vocabulary)));
}

Tokenizer::Tokenizer(Vocabulary vocabulary)
    : vocabulary_(complete(std::move(vocabulary))), parts_(std::make_unique<Parts>(vocabulary_)) {
  choose_prefix_and_suffix();
}

Tokenizer::~Tokenizer() = default;

void Tokenizer::choose_prefix_and_suffix() {
  const TokenizerAlgorithm::Defaults defaults = parts_->algorithm->defaults();
  const bool bert = vocabulary_.model == "bert";
  const SpecialTokens& special = vocabulary_.special;
  // BERT names them CLS and SEP.
  const Token bos = bert && special.cls != kNoToken ? special.cls : special.bos;
  const Token eos = bert ? special.sep : special.eos;
  const std::optional<bool> add_eos = bert ? vocabulary_.add_sep : vocabulary_.add_eos;
  bool wants_bos = vocabulary_.add_bos.value_or(defaults.add_bos && bos != kNoToken);
  // Early gemma4 files say false, but the model needs it.
  if (vocabulary_.model == "gemma4" || vocabulary_.pre == "gemma4") wants_bos = true;
  const auto require = [](Token token, std::string_view flag) {
    if (token != kNoToken) return token;
    throw FormatError(message(flag, ": expected a token to add, found none"));
  };
  if (wants_bos) prefix_ = require(bos, "tokenizer.ggml.add_bos_token");
  if (add_eos.value_or(defaults.add_eos && eos != kNoToken)) {
    suffix_ = require(eos, bert ? "tokenizer.ggml.add_sep_token" : "tokenizer.ggml.add_eos_token");
  }
}

std::vector<Token> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > kLongestText) {
    throw ConfigError(
        message("text: expected at most ", kLongestText, " bytes, found ", text.size()));
  }
  std::vector<Token> out;
  if (options.add_special && prefix_ != kNoToken) out.push_back(prefix_);
  bool after_special = true;
  for (const SpecialTokenCutter::Part& part : parts_->cutter.cut(text, options.parse_special)) {
    if (part.token != kNoToken) {
      out.push_back(part.token);
    } else {
      parts_->algorithm->encode(part.text, after_special, out);
    }
    after_special = part.token != kNoToken;
  }
  if (options.add_special && suffix_ != kNoToken) out.push_back(suffix_);
  return out;
}

std::string Tokenizer::piece(Token token, bool render_special) const {
  if (token < 0 || token >= vocab_size()) {
    throw ConfigError(message("token: expected an id below ", vocab_size(), ", found ", token));
  }
  const std::string& text = vocabulary_.pieces[static_cast<size_t>(token)];
  switch (vocabulary_.kinds[static_cast<size_t>(token)]) {
    case TokenKind::unknown:
    case TokenKind::control:
      return render_special ? text : std::string();
    case TokenKind::user_defined:
      return text;
    case TokenKind::normal:
      return parts_->algorithm->text_of(text);
    case TokenKind::byte:
      return std::string(1, static_cast<char>(byte_value(text)));
    case TokenKind::unused:
      break;
  }
  return {};
}

std::string Tokenizer::decode(std::span<const Token> tokens, DecodeOptions options) const {
  bool at_start = options.remove_space_prefix && parts_->algorithm->defaults().marks_first_word;
  std::string out;
  for (const Token token : tokens) {
    std::string text = piece(token, options.render_special);
    if (text.empty()) continue;
    if (at_start && text[0] == ' ') text.erase(0, 1);
    at_start = false;
    out.append(text);
  }
  return out;
}

Token Tokenizer::find(std::string_view piece) const { return parts_->index.find(piece); }

bool Tokenizer::is_end_of_generation(Token token) const {
  return std::binary_search(parts_->ends.begin(), parts_->ends.end(), token);
}

}  // namespace kve
