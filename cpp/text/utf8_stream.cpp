#include <cstdint>

#include "text/tokenizer.h"

namespace kve {
namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

enum class Sequence { complete, unfinished, broken };

// The sequence at the begin of `bytes`: well-formed (table 3-7 of the Unicode standard), a prefix
// of a well-formed one, or neither. `length`: of the sequence, or of its longest well-formed prefix
// (at least 1).
Sequence inspect(std::string_view bytes, size_t& length) {
  const uint8_t lead = static_cast<uint8_t>(bytes[0]);
  length = 1;
  if (lead < 0x80) return Sequence::complete;
  if (lead < 0xC2 || lead > 0xF4) return Sequence::broken;
  const size_t wanted = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte excludes overlong forms, surrogates and values above U+10FFFF.
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (; length < wanted; ++length) {
    if (length == bytes.size()) return Sequence::unfinished;
    const uint8_t byte = static_cast<uint8_t>(bytes[length]);
    if (byte < low || byte > high) return Sequence::broken;
    low = 0x80;
    high = 0xBF;
  }
  return Sequence::complete;
}

}  // namespace

std::string Utf8Stream::push(std::string_view bytes) {
  pending_.append(bytes);
  std::string out;
  size_t pos = 0;
  while (pos < pending_.size()) {
    size_t length = 0;
    const Sequence sequence = inspect(std::string_view(pending_).substr(pos), length);
    if (sequence == Sequence::unfinished) break;
    if (sequence == Sequence::complete) {
      out.append(pending_, pos, length);
    } else {
      out.append(kReplacementCharacter);
    }
    pos += length;
  }
  pending_.erase(0, pos);
  return out;
}

std::string Utf8Stream::flush() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace kve
