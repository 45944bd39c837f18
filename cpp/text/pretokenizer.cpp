#include "text/pretokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/printable.h"
#include "text/pretokenizer_sets.h"

namespace kve {
namespace {

using namespace unicode;  // NOLINT(google-build-using-namespace): the Property names

constexpr size_t kUnlimited = SIZE_MAX;

constexpr CharSet set(uint16_t properties) { return {.properties = properties}; }
constexpr CharSet none_of(uint16_t properties) {
  return {.properties = properties, .complement = true};
}
constexpr CharSet kOther = none_of(kSpace | kLetter | kNumber);  // [^\s\p{L}\p{N}]
constexpr CharSet kWordLead = none_of(kNewline | kLetter | kNumber);

// Rules that many families share; the comment is the regular expression.

Rule some(CharSet body, size_t most = kUnlimited) {  // body{1,most}
  return {.match = match_run, .body = body, .most = most};
}
Rule after(CharSet lead, CharSet body, CharSet tail = {}) {  // lead?body+tail*
  return {.match = match_run, .body = body, .lead = lead, .tail = tail};
}
Rule after_one(CharSet lead, CharSet body) {  // lead body+
  return {.match = match_run, .body = body, .lead = lead, .lead_required = true};
}
Rule ascii_thousands() {  // [0-9][0-9][0-9]
  return {.match = match_run, .body = {.ranges = kAsciiDigits}, .least = 3, .most = 3};
}
Rule contraction(bool ignore_case) {  // 's|'t|'re|'ve|'m|'ll|'d
  return {.match = match_contraction, .flag = ignore_case};
}
Rule groups_of_three(CharSet digits, CharSet not_before = {}) {
  return {.match = match_groups_of_three, .body = digits, .tail = not_before};
}
Rule simple(MatchFunction function) { return {.match = function}; }

// \s*[\r\n]+|\s+(?!\S)|\s+
const std::vector<Rule>& spaces() {
  static const std::vector<Rule> rules = {simple(match_spaces_to_newline),
                                          simple(match_spaces_before_last), some(set(kSpace))};
  return rules;
}
Stage with_spaces(Stage stage) {
  stage.insert(stage.end(), spaces().begin(), spaces().end());
  return stage;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
Stage gpt2() {
  return {contraction(false),
          after(set(kBlank), set(kLetter)),
          after(set(kBlank), set(kNumber)),
          after(set(kBlank), kOther),
          simple(match_spaces_before_last),
          some(set(kSpace))};
}

// (?i:'s|'t|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*| and spaces.
// `marks`: marks belong to letters.
struct Llama3Options {
  size_t digits = 3;
  bool contractions = true;
  bool marks = false;
  CharSet other_tail = set(kNewline);
};
Stage llama3(const Llama3Options& options = {}) {
  const uint16_t marks = options.marks ? kMark : uint16_t{0};
  Stage stage;
  if (options.contractions) stage.push_back(contraction(true));
  stage.push_back(after(kWordLead, set(kLetter | marks)));
  stage.push_back(some(set(kNumber), options.digits));
  stage.push_back(
      after(set(kBlank), none_of(kSpace | kLetter | kNumber | marks), options.other_tail));
  return with_spaces(std::move(stage));
}
Stage qwen2() { return llama3({.digits = 1}); }

// The words of o200k, which end where lower case turns into upper case.
struct CasedOptions {
  size_t digits = 3;
  bool contractions = true;
  bool without_han = false;  // [\p{Han}]+ are words of their own
  CharSet other_tail = {.properties = kNewline, .ranges = kSlash};
};
Stage o200k(const CasedOptions& options = {}) {
  Stage stage;
  if (options.without_han) stage.push_back(some(set(kHan)));
  stage.push_back({.match = match_cased_word,
                   .lead = kWordLead,
                   .tail = options.without_han ? set(kHan) : CharSet{},
                   .flag = options.contractions});
  stage.push_back(some(set(kNumber), options.digits));
  stage.push_back(after(set(kBlank), kOther, options.other_tail));
  return with_spaces(std::move(stage));
}

// [ASCII punctuation][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*| spaces
Stage deepseek3_words() {
  return with_spaces(
      {after_one({.ranges = kAsciiPunctuation}, {.ranges = kAsciiLetters}),
       after(none_of(kNewline | kLetter | kPunctuation | kSymbol), set(kLetter | kMark)),
       after(set(kBlank), set(kPunctuation | kSymbol), set(kNewline))});
}

std::vector<Stage> deepseek3() {
  return {{some(set(kNumber), 3)}, {some({.ranges = kCjkAndKana})}, deepseek3_words()};
}

// As deepseek3, but every newline and every digit is a word.
std::vector<Stage> spark() {
  Stage words = {after_one({.ranges = kAsciiPunctuation}, {.ranges = kAsciiLetters}),
                 after(none_of(kNewline | kLetter | kPunctuation | kSymbol), set(kLetter | kMark)),
                 after(set(kBlank), set(kPunctuation | kSymbol)),
                 some(set(kNewline), 1),
                 simple(match_spaces_before_last),
                 some(set(kSpace))};
  return {{some(set(kNumber), 3)},
          {some({.ranges = kCjkAndKana})},
          std::move(words),
          {some(set(kNumber), 1)}};
}

std::vector<Stage> deepseek_llm() {
  return {{some(set(kNewline), 1)},
          {after(set(kSpace), {.ranges = kCasedLetters})},
          {after(set(kSpace), {.ranges = kWidePunctuation})},
          {simple(match_trailing_spaces)},
          {some({.ranges = kCjkAndHangul})},
          {some(set(kNumber))}};
}

std::vector<Stage> deepseek_coder() {
  return {{some(set(kNewline), 1)},
          {after(set(kSpace), set(kLetter))},
          {after(set(kSpace), set(kPunctuation))},
          {some({.ranges = kCjkAndHangul})},
          {some(set(kNumber), 1)}};
}

// What llama.cpp cuts when a file names no pre-tokenizer.
std::vector<Stage> unnamed() {
  return {{some({.properties = kPunctuation, .ranges = kAsciiSymbolsButBacktick})},
          gpt2(),
          {some(set(kNumber))},
          {ascii_thousands()}};
}

std::vector<Stage> falcon() {
  return {
      {some({.properties = kPunctuation, .ranges = kAsciiSymbols})}, gpt2(), {ascii_thousands()}};
}

//  ?[^(\s|.,!?…。，、।۔،)]+
Stage bloom() {
  return {after(set(kBlank),
                {.properties = kSpace, .ranges = kSentencePunctuation, .complement = true})};
}

std::vector<Stage> jais2() {
  Stage stage = llama3();
  stage.resize(stage.size() - 2);  // other rules for spaces without a newline
  stage.push_back(simple(match_spaces_in_powers));
  return {std::move(stage)};
}

std::vector<Stage> chameleon() {
  return {{simple(match_sentinel)},
          {simple(match_image_code)},
          {simple(match_indentation)},
          {some(set(kNumber), 1)},
          {some({.properties = kPunctuation, .ranges = kAsciiPunctuation}, 1)},
          gpt2()};
}

std::vector<Stage> youtu() {
  return {{some({.ranges = kHangulAndJamo}), some({.ranges = kCjkPunctuation}),
           some({.ranges = kBopomofo}), some({.ranges = kCjkAndKana})},
          o200k({.digits = 1})};
}

std::vector<Stage> afmoe() {
  return {{groups_of_three(set(kNumber))}, {some({.ranges = kAsianScripts})}, deepseek3_words()};
}

std::vector<Stage> tiny_aya() {
  CharSet word_characters = set(kLetter | kMark | kNumber);  // \w
  word_characters.ranges = kUnderscore;
  return {{groups_of_three(set(kDecimal), word_characters)}, o200k()};
}

std::vector<Stage> exaone_moe() {
  return {with_spaces({contraction(true),
                       {.match = match_phrase, .lead = kWordLead},
                       some(set(kNumber), 1),
                       {.match = match_run,
                        .body = kOther,
                        .lead = set(kBlank),
                        .tail = {.properties = kNewline, .ranges = kSlash},
                        .tail_most = 1}})};
}

// [^\n]+|\n+
Stage lines() {
  static constexpr CodeRange kLineFeed[] = {{U'\n', U'\n'}};
  return {some({.ranges = kLineFeed, .complement = true}), some({.ranges = kLineFeed})};
}

std::vector<Stage> minicpm5() { return {{some(set(kNumber), 3)}, llama3({.digits = kUnlimited})}; }
std::vector<Stage> superbpe() {
  return {{some(set(kNumber))}, {{.match = match_to_thousands, .body = set(kDecimal)}}};
}

struct Entry {
  std::string_view name;
  std::vector<Stage> (*stages)();
  PreTokenizer::Traits traits = {};
};
constexpr PreTokenizer::Traits kIgnoreMerges{.ignore_merges = true};
constexpr PreTokenizer::Traits kAddBos{.add_bos = true};
constexpr PreTokenizer::Traits kIgnoreMergesAddBos{.ignore_merges = true, .add_bos = true};
constexpr PreTokenizer::Traits kRawText{.raw_text = true};
constexpr PreTokenizer::Traits kGemma4{.raw_text = true, .newline_words = true};

std::vector<Stage> only_gpt2() { return {gpt2()}; }
std::vector<Stage> digits_gpt2() { return {{some(set(kNumber), 1)}, gpt2()}; }
std::vector<Stage> only_llama3() { return {llama3()}; }
std::vector<Stage> only_qwen2() { return {qwen2()}; }
std::vector<Stage> only_qwen35() { return {llama3({.digits = 1, .marks = true})}; }
std::vector<Stage> only_o200k() { return {o200k()}; }
std::vector<Stage> only_bloom() { return {bloom()}; }
std::vector<Stage> only_lines() { return {lines()}; }
std::vector<Stage> viking() { return {bloom(), {some(set(kNumber), 1)}}; }
std::vector<Stage> laguna() { return {lines(), qwen2()}; }
std::vector<Stage> ufakzeka() { return {llama3({.digits = 1, .contractions = false})}; }
std::vector<Stage> tekken() { return {o200k({.digits = 1, .contractions = false})}; }
std::vector<Stage> kimi_k2() { return {o200k({.without_han = true, .other_tail = set(kNewline)})}; }
std::vector<Stage> seed_coder() {
  Stage stage = llama3({.digits = 1, .other_tail = {}});
  return {std::move(stage)};
}

// The names that llama.cpp accepts.
constexpr Entry kEntries[] = {
    {"", unnamed},
    {"default", unnamed},
    {"gpt-2", only_gpt2},
    {"phi-2", only_gpt2},
    {"jina-es", only_gpt2},
    {"jina-de", only_gpt2},
    {"jina-v2-es", only_gpt2},
    {"jina-v2-de", only_gpt2},
    {"jina-v1-en", only_gpt2},
    {"jina-v2-code", only_gpt2},
    {"roberta-bpe", only_gpt2},
    {"gigachat", only_gpt2},
    {"a.x-4.0", only_gpt2},
    {"mellum", only_gpt2},
    {"modern-bert", only_gpt2},
    {"exaone4", only_gpt2},
    {"mpt", only_gpt2},
    {"olmo", only_gpt2},
    {"gpt-neox", only_gpt2},
    {"jais", only_gpt2},
    {"trillion", only_gpt2},
    {"granite-docling", only_gpt2},
    {"starcoder", digits_gpt2},
    {"refact", digits_gpt2},
    {"command-r", digits_gpt2},
    {"smollm", digits_gpt2},
    {"codeshell", digits_gpt2},
    {"exaone", digits_gpt2},
    {"minerva-7b", digits_gpt2},
    {"mellum2", digits_gpt2},
    {"llama3", only_llama3, kIgnoreMergesAddBos},
    {"llama-v3", only_llama3, kIgnoreMergesAddBos},
    {"llama-bpe", only_llama3, kIgnoreMergesAddBos},
    {"falcon3", only_llama3, kIgnoreMergesAddBos},
    {"falcon-h1", only_llama3, kIgnoreMergesAddBos},
    {"pixtral", only_llama3, kIgnoreMergesAddBos},
    {"midm-2.0", only_llama3, kIgnoreMergesAddBos},
    {"lfm2", only_llama3, kIgnoreMergesAddBos},
    {"jina-v5-nano", only_llama3, kIgnoreMergesAddBos},
    {"dbrx", only_llama3},
    {"smaug-bpe", only_llama3},
    {"chatglm-bpe", only_llama3},
    {"glm4", only_llama3, kIgnoreMerges},
    {"glm5", only_llama3, kIgnoreMerges},
    {"jais-2", jais2},
    {"minicpm5", minicpm5, kIgnoreMerges},
    {"qwen2", only_qwen2},
    {"deepseek-r1-qwen", only_qwen2},
    {"kormo", only_qwen2},
    {"f2llmv2", only_qwen2},
    {"megrez", only_qwen2},
    {"stablelm2", only_qwen2},
    {"hunyuan", only_qwen2},
    {"solar-open", only_qwen2},
    {"grok-2", only_qwen2},
    {"bailingmoe", only_qwen2},
    {"bailingmoe2", only_qwen2},
    {"llada-moe", only_qwen2},
    {"qwen35", only_qwen35},
    {"seed-coder", seed_coder},
    {"ufakzeka", ufakzeka},
    {"laguna", laguna},
    {"exaone-moe", exaone_moe},
    {"deepseek-llm", deepseek_llm},
    {"deepseek-coder", deepseek_coder},
    {"deepseek-v3", deepseek3},
    {"hunyuan-dense", deepseek3},
    {"joyai-llm", deepseek3},
    {"hy_v4", deepseek3},
    {"spark2_5", spark},
    {"afmoe", afmoe},
    {"youtu", youtu, kIgnoreMerges},
    {"falcon", falcon},
    {"bloom", only_bloom},
    {"poro-chat", only_bloom},
    {"gpt3-finnish", only_bloom},
    {"viking", viking},
    {"gpt-4o", only_o200k},
    {"llama4", only_o200k},
    {"kanana2", only_o200k},
    {"talkie", only_o200k},
    {"minimax-m2", only_o200k},
    {"granite-embed-multi-97m", only_o200k, kIgnoreMerges},
    {"tekken", tekken, kIgnoreMergesAddBos},
    {"kimi-k2", kimi_k2},
    {"tiny_aya", tiny_aya},
    {"cohere2moe", tiny_aya},
    {"superbpe", superbpe},
    {"chameleon", chameleon, kAddBos},
    {"gemma4", only_lines, kGemma4},
    {"granite-embed-multi-311m", only_lines, kGemma4},
    {"sarvam-moe", only_lines, kRawText},
};

const Entry& find_entry(std::string_view name) {
  const auto* entry = std::find_if(std::begin(kEntries), std::end(kEntries),
                                   [&](const Entry& e) { return e.name == name; });
  if (entry != std::end(kEntries)) return *entry;
  std::string known;
  for (const Entry& e : kEntries) {
    if (!e.name.empty()) known.append(known.empty() ? "" : ", ").append(e.name);
  }
  throw UnsupportedError(
      message("tokenizer.ggml.pre: expected one of ", known, ", found ", quoted(name)));
}

}  // namespace

PreTokenizer::PreTokenizer(std::string_view name)
    : traits_(find_entry(name).traits), stages_(find_entry(name).stages()) {}

std::vector<uint32_t> PreTokenizer::split(std::u32string_view text) const {
  std::vector<uint16_t> properties(text.size());
  std::transform(text.begin(), text.end(), properties.begin(), unicode::properties);
  std::vector<uint32_t> words, cuts;
  if (!text.empty()) words.push_back(static_cast<uint32_t>(text.size()));
  for (const Stage& stage : stages_) {
    cuts.clear();
    uint32_t begin = 0;
    for (const uint32_t end : words) {
      cut(stage, text, properties, begin, end, cuts);
      begin = end;
    }
    words.swap(cuts);
  }
  return words;
}

}  // namespace kve
