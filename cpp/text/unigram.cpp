// The unigram language model of sentencepiece (arXiv:1804.10959) as the "t5" vocabularies use it:
// of all ways to cut the normalized text into pieces, the one with the largest sum of scores.
#include <algorithm>
#include <limits>

#include "base/error.h"
#include "text/algorithm.h"
#include "text/charsmap.h"
#include "text/unicode.h"

namespace kve {
namespace {

// sentencepiece: an unknown character costs this much more than the worst piece.
constexpr double kUnknownPenalty = 10;

class Unigram final : public TokenizerAlgorithm {
 public:
  explicit Unigram(const Vocabulary& vocabulary)
      : vocabulary_(vocabulary),
        charsmap_(vocabulary.precompiled_charsmap),
        prefixes_(vocabulary.pieces, text_pieces(vocabulary)),
        add_space_(vocabulary.add_space_prefix.value_or(false)),
        merge_spaces_(vocabulary.remove_extra_whitespaces.value_or(false)),
        space_(vocabulary.escape_whitespaces.value_or(true) ? kSpaceMark : " ") {
    if (vocabulary.special.unk == kNoToken) {
      throw FormatError("tokenizer.ggml.unknown_token_id: expected a token, found none");
    }
    float worst = std::numeric_limits<float>::max();
    for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
      if (vocabulary.kinds[id] == TokenKind::normal) worst = std::min(worst, score(id));
    }
    unknown_score_ = double{worst} - kUnknownPenalty;
  }

  void encode(std::string_view text, bool, std::vector<Token>& out) const override {
    const std::string normalized = normalize(text);
    if (normalized.empty()) return;
    const std::vector<Best> best = find_best(normalized);
    const size_t first = out.size();
    bool after_unknown = false;
    for (size_t end = normalized.size(); end > 0; end = best[end].begin) {
      // Neighbouring unknown characters become one token.
      const bool unknown = best[end].token == vocabulary_.special.unk;
      if (!unknown || !after_unknown) out.push_back(best[end].token);
      after_unknown = unknown;
    }
    std::reverse(out.begin() + static_cast<ptrdiff_t>(first), out.end());
  }

  std::string text_of(std::string_view piece) const override { return unmark_spaces(piece); }

  Defaults defaults() const override { return {.add_eos = true, .marks_first_word = add_space_}; }

 private:
  // The best way to cut the text up to some byte: its last piece and the score of all.
  struct Best {
    double score = -std::numeric_limits<double>::infinity();
    Token token = kNoToken;
    uint32_t begin = 0;  // of the last piece
  };

  const Vocabulary& vocabulary_;
  Charsmap charsmap_;
  PrefixIndex prefixes_;
  const bool add_space_, merge_spaces_;
  const std::string_view space_;
  double unknown_score_ = 0;

  float score(size_t id) const { return vocabulary_.scores.empty() ? 0 : vocabulary_.scores[id]; }

  std::string normalize(std::string_view text) const {
    std::string mapped, out;
    charsmap_.normalize(text, mapped);
    out.reserve(mapped.size() + mapped.size() / 4);
    bool in_word = false, has_prefix = false;
    for (const char c : mapped) {
      if (c == ' ') {
        in_word = false;
        if (!merge_spaces_) out.append(space_);
        continue;
      }
      if (!in_word && ((add_space_ && !has_prefix) || merge_spaces_)) {
        out.append(space_);
        has_prefix = true;
      }
      in_word = true;
      out.push_back(c);
    }
    return out;
  }

  // Viterbi over byte positions; doubles, so that ties resolve as in the reference.
  std::vector<Best> find_best(std::string_view text) const {
    std::vector<Best> best(text.size() + 1);
    best[0].score = 0;
    for (size_t pos = 0; pos < text.size();) {
      const size_t character = std::min(unicode::sequence_length(text[pos]), text.size() - pos);
      const double so_far = best[pos].score;
      const auto offer = [&](Token token, size_t length, double added) {
        Best& end = best[pos + length];
        if (so_far + added > end.score) {
          end = {so_far + added, token, static_cast<uint32_t>(pos)};
        }
      };
      bool covered = false;
      prefixes_.for_each_prefix(text.substr(pos), [&](Token token, size_t length) {
        covered |= length == character;
        const size_t id = static_cast<size_t>(token);
        const bool chosen = vocabulary_.kinds[id] == TokenKind::user_defined;
        offer(token, length, chosen ? 0 : double{score(id)});
      });
      if (!covered) offer(vocabulary_.special.unk, character, unknown_score_);
      pos += character;
    }
    return best;
  }
};

}  // namespace

std::unique_ptr<const TokenizerAlgorithm> make_unigram(const Vocabulary& vocabulary,
                                                       const PieceIndex&) {
  return std::make_unique<Unigram>(vocabulary);
}

}  // namespace kve
