// Tokens that stand outside of ordinary text: which of them play a role, and where they occur.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/piece_index.h"
#include "text/vocabulary.h"

namespace kve {

// Fills the roles that a file leaves open from well-known spellings ("<|im_end|>"), and makes the
// tokens that have a role control tokens. Returns the tokens that end an answer, sorted.
std::vector<Token> assign_roles(Vocabulary& vocabulary, const PieceIndex& index);

// Cuts text at control, unknown and user-defined tokens. Longer tokens win over shorter ones, then
// the leftmost wins.
class SpecialTokenCutter {
 public:
  // `vocabulary` must outlive this.
  explicit SpecialTokenCutter(const Vocabulary& vocabulary);

  // A special token, or (kNoToken) text between them, which is not empty.
  struct Part {
    Token token = kNoToken;
    std::string_view text;
  };
  // Control and unknown tokens are recognised if `parse_special`, user-defined ones always.
  std::vector<Part> cut(std::string_view text, bool parse_special) const;

 private:
  struct Entry {
    Token token = kNoToken;
    bool is_text = false;     // user-defined
    bool strip_left = false;  // swallows the white space before it
    bool strip_right = false;
  };
  // The tokens of one length.
  struct Group {
    size_t length = 0;
    bool has_text = false;
    std::array<bool, 256> first{};  // bytes that a token begins with
    std::unordered_map<std::string_view, Entry> entries = {};
  };
  std::vector<Group> groups_;  // longest first

  static void cut_part(const Group& group, std::string_view text, bool parse_special,
                       std::vector<Part>& out);
};

}  // namespace kve
