#include "text/piece_index.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/error.h"

namespace kve {
namespace {

// At most half full, so that probing stays short.
size_t table_size(size_t entries) { return std::bit_ceil(entries * 2 + 2); }

uint32_t hash_text(std::string_view text) {
  const uint64_t hash = std::hash<std::string_view>{}(text);
  return static_cast<uint32_t>(hash ^ (hash >> 32));
}

}  // namespace

PieceIndex::PieceIndex(std::span<const std::string> pieces)
    : pieces_(pieces), slots_(table_size(pieces.size())) {
  for (size_t id = 0; id < pieces.size(); ++id) {
    longest_ = std::max(longest_, pieces[id].size());
    const uint32_t hash = hash_text(pieces[id]);
    size_t slot = hash & (slots_.size() - 1);
    for (; slots_[slot].token != kNoToken; slot = (slot + 1) & (slots_.size() - 1)) {
      const size_t other = static_cast<size_t>(slots_[slot].token);
      if (slots_[slot].hash == hash && pieces_[other] == pieces[id]) {
        throw FormatError(message("tokenizer.ggml.tokens: expected distinct pieces, found ", other,
                                  " and ", id, " equal"));
      }
    }
    slots_[slot] = {hash, static_cast<Token>(id)};
  }
}

Token PieceIndex::find(std::string_view text) const {
  if (text.size() > longest_) return kNoToken;
  const uint32_t hash = hash_text(text);
  size_t slot = hash & (slots_.size() - 1);
  for (; slots_[slot].token != kNoToken; slot = (slot + 1) & (slots_.size() - 1)) {
    if (slots_[slot].hash == hash && pieces_[static_cast<size_t>(slots_[slot].token)] == text) {
      return slots_[slot].token;
    }
  }
  return kNoToken;
}

PrefixIndex::PrefixIndex(std::span<const std::string> pieces, std::vector<Token> members)
    : pieces_(pieces), members_(std::move(members)), first_(257) {
  std::erase_if(members_, [&](Token id) { return pieces_[static_cast<size_t>(id)].empty(); });
  std::sort(members_.begin(), members_.end(), [&](Token a, Token b) {
    return pieces_[static_cast<size_t>(a)] < pieces_[static_cast<size_t>(b)];
  });
  uint32_t member = 0;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    first_[byte] = member;
    while (member < members_.size() && static_cast<uint8_t>(piece(member)[0]) == byte) ++member;
  }
  first_[256] = member;
}

void PrefixIndex::narrow(size_t depth, uint8_t byte, uint32_t& low, uint32_t& high) const {
  const auto begin = members_.begin() + low, end = members_.begin() + high;
  // All of these are longer than `depth` bytes.
  const auto byte_at = [&](Token id) {
    return static_cast<uint8_t>(pieces_[static_cast<size_t>(id)][depth]);
  };
  const auto lower =
      std::lower_bound(begin, end, byte, [&](Token id, uint8_t b) { return byte_at(id) < b; });
  const auto upper =
      std::upper_bound(lower, end, byte, [&](uint8_t b, Token id) { return b < byte_at(id); });
  low = static_cast<uint32_t>(lower - members_.begin());
  high = static_cast<uint32_t>(upper - members_.begin());
}

Token PrefixIndex::longest_prefix(std::string_view text, size_t& length) const {
  Token longest = kNoToken;
  for_each_prefix(text, [&](Token token, size_t bytes) {
    longest = token;
    length = bytes;
  });
  return longest;
}

PairMap::PairMap(size_t expected_pairs) : slots_(table_size(expected_pairs)) {}

size_t PairMap::slot_of(uint64_t pair) const {
  // Multiplicative hashing; the upper bits are the good ones.
  size_t slot = static_cast<size_t>((pair * 0x9E3779B97F4A7C15u) >> 32) & (slots_.size() - 1);
  while (slots_[slot].rank != kNone && slots_[slot].pair != pair) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

void PairMap::add(uint32_t left, uint32_t right, uint32_t rank) {
  const uint64_t pair = uint64_t{left} << 32 | right;
  Slot& slot = slots_[slot_of(pair)];
  if (slot.rank == kNone) slot = {pair, rank};
}

uint32_t PairMap::find(uint32_t left, uint32_t right) const {
  return slots_[slot_of(uint64_t{left} << 32 | right)].rank;
}

}  // namespace kve
