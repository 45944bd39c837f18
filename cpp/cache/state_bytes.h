// The bytes of a saved cache, written and read field by field.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace kve {

static_assert(std::endian::native == std::endian::little, "states are little-endian bytes");

class StateWriter {
 public:
  template <class T>
  void put(T value) {
    put_bytes(reinterpret_cast<const std::byte*>(&value), sizeof(value));
  }
  void put_bytes(const std::byte* data, size_t size) {
    bytes_.insert(bytes_.end(), data, data + size);
  }
  void put_string(const std::string& text) {
    put(static_cast<uint32_t>(text.size()));
    put_bytes(reinterpret_cast<const std::byte*>(text.data()), text.size());
  }
  void reserve(size_t size) { bytes_.reserve(size); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Every take is checked against what is left.
class StateReader {
 public:
  explicit StateReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t left() const { return bytes_.size() - at_; }

  std::span<const std::byte> take(size_t size, std::string_view what) {
    if (size > left()) {
      throw FormatError(
          message("cache state: ", what, ": expected ", size, " more bytes, found ", left()));
    }
    at_ += size;
    return bytes_.subspan(at_ - size, size);
  }
  template <class T>
  T get(std::string_view what) {
    T value{};
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  std::string get_string(size_t most, std::string_view what) {
    const auto size = get<uint32_t>(what);
    if (size > most) {
      throw FormatError(
          message("cache state: ", what, ": expected at most ", most, " characters, found ", size));
    }
    const std::span<const std::byte> text = take(size, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }
  template <class T>
  void expect(T expected, std::string_view what) {
    const T found = get<T>(what);
    if (found != expected) {
      throw FormatError(message("cache state: ", what, ": expected ", expected, ", found ", found));
    }
  }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

[[noreturn]] inline void bad_field(const std::string& where, std::string_view what, int64_t found) {
  throw FormatError(message("cache state, ", where, ": ", what, " ", found, " is impossible"));
}

// `where` is "header", or names a layer and, it may be, a kv head.
template <class Expected>
[[noreturn]] void refuse_field(const std::string& where, std::string_view what,
                               const Expected& expected, int64_t found) {
  throw FormatError(
      message("cache state, ", where, ": ", what, ": expected ", expected, ", found ", found));
}

}  // namespace kve
