// A bounds-checked cursor over the bytes of a file.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/printable.h"

namespace kve::gguf {

static_assert(std::endian::native == std::endian::little, "GGUF files are read in place");

class ByteReader {
 public:
  // `name` starts every message and must outlive the reader.
  ByteReader(std::span<const std::byte> bytes, std::string_view name)
      : bytes_(bytes), name_(name) {}

  // What is being read, for messages: "file.gguf: tensor 'output.weight': ...". The subject is
  // escaped only when a message is made.
  void set_subject(std::string_view kind, std::string_view subject = {}) {
    kind_ = kind;
    subject_ = subject;
  }

  size_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  // Throws FormatError when fewer than `count` bytes remain.
  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    if (count > remaining()) {
      fail(message(what, " is cut short: expected ", count, " bytes, found ", remaining(),
                   " before the end of the file"));
    }
    const auto result = bytes_.subspan(position_, static_cast<size_t>(count));
    position_ += static_cast<size_t>(count);
    return result;
  }

  template <class T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  // A 64-bit length followed by that many bytes.
  std::string_view string(std::string_view what) {
    const auto bytes = take(number<uint64_t>(what), what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  // A 64-bit count of entries of at least `min_bytes` each: at most `limit`, and no more than the
  // remaining bytes can hold.
  uint64_t count(uint64_t limit, uint64_t min_bytes, std::string_view what) {
    const auto value = number<uint64_t>(what);
    check_count(value, limit, min_bytes, what);
    return value;
  }
  void check_count(uint64_t value, uint64_t limit, uint64_t min_bytes, std::string_view what) {
    const uint64_t fitting = remaining() / min_bytes;
    if (value > limit || value > fitting) {
      fail(message(what, ": expected at most ", std::min(limit, fitting), ", found ", value));
    }
  }

  [[noreturn]] void fail(std::string_view reason) const { throw FormatError(describe(reason)); }
  [[noreturn]] void unsupported(std::string_view reason) const {
    throw UnsupportedError(describe(reason));
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view name_;
  std::string_view kind_;
  std::string_view subject_;
  size_t position_ = 0;

  std::string describe(std::string_view reason) const {
    if (kind_.empty()) return message(name_, ": ", reason);
    if (subject_.empty()) return message(name_, ": ", kind_, ": ", reason);
    return message(name_, ": ", kind_, " ", quoted(subject_), ": ", reason);
  }
};

}  // namespace kve::gguf
