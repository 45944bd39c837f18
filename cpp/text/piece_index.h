// Look-up tables of a vocabulary: pieces by text, pieces by prefix, pairs of symbols.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/token.h"

namespace kve {

// Finds pieces by their exact text. The pieces belong to somebody else and must outlive this.
class PieceIndex {
 public:
  // Throws FormatError if two pieces are equal.
  explicit PieceIndex(std::span<const std::string> pieces);

  // kNoToken if there is no such piece.
  Token find(std::string_view text) const;
  size_t longest() const { return longest_; }  // bytes of the longest piece

 private:
  struct Slot {
    uint32_t hash = 0;
    Token token = kNoToken;
  };
  std::span<const std::string> pieces_;
  std::vector<Slot> slots_;  // open addressing; the size is a power of two
  size_t longest_ = 0;
};

// Finds all pieces that begin at one place of a text. The pieces must outlive this.
class PrefixIndex {
 public:
  // Indexes `members`, entries of `pieces`; empty pieces are left out.
  PrefixIndex(std::span<const std::string> pieces, std::vector<Token> members);

  // Calls found(token, length) for every member that `text` begins with, shortest first.
  template <class F>
  void for_each_prefix(std::string_view text, F&& found) const {
    if (text.empty()) return;
    const uint8_t byte = static_cast<uint8_t>(text[0]);
    uint32_t low = first_[byte], high = first_[byte + 1];
    for (size_t depth = 1; low < high; ++depth) {
      // Members in [low, high) share the first `depth` bytes with the text; the shortest is first.
      if (high - low == 1) {
        if (text.starts_with(piece(low))) found(members_[low], piece(low).size());
        return;
      }
      if (piece(low).size() == depth) found(members_[low++], depth);
      if (depth == text.size()) return;
      narrow(depth, static_cast<uint8_t>(text[depth]), low, high);
    }
  }
  // The longest member that `text` begins with; kNoToken if there is none.
  Token longest_prefix(std::string_view text, size_t& length) const;

 private:
  std::span<const std::string> pieces_;
  std::vector<Token> members_;   // sorted by text
  std::vector<uint32_t> first_;  // [257] members that begin with byte b: first_[b] .. first_[b + 1]

  const std::string& piece(size_t member) const {
    return pieces_[static_cast<size_t>(members_[member])];
  }
  void narrow(size_t depth, uint8_t byte, uint32_t& low, uint32_t& high) const;
};

// Maps a pair of symbols to the rank of their merge.
class PairMap {
 public:
  static constexpr uint32_t kNone = 0xFFFFFFFF;

  explicit PairMap(size_t expected_pairs);
  // Keeps the rank of a pair that is already known.
  void add(uint32_t left, uint32_t right, uint32_t rank);
  uint32_t find(uint32_t left, uint32_t right) const;  // kNone if unknown

 private:
  struct Slot {
    uint64_t pair = 0;
    uint32_t rank = kNone;
  };
  std::vector<Slot> slots_;  // open addressing; the size is a power of two

  size_t slot_of(uint64_t pair) const;
};

}  // namespace kve
