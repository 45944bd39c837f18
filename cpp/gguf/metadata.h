// The key/value part of a GGUF file: hyper-parameters, vocabulary, chat template.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace kve {

// Numbered as in the file format.
enum class MetaType : uint32_t {
  u8 = 0,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  array,
  u64,
  i64,
  f64
};

inline constexpr uint32_t kMetaTypes = 13;

std::string_view to_string(MetaType type);
// Bytes of one value; 0 for strings and arrays, whose length is not fixed.
size_t size_of(MetaType type);

// One checked value: a small view into the bytes of the file (or of the writer) it came from,
// valid as long as that lives. Typed access converts between widths where the value fits and
// throws FormatError, naming the key, the expected and the found type, where it does not.
class MetaValue {
 public:
  // `payload`: the bytes as the format stores them, without the type; for a string without its
  // length, for an array without element type and count. The caller has checked them.
  MetaValue(std::string_view key, MetaType type, MetaType element_type, size_t size,
            std::span<const std::byte> payload)
      : key_(key), type_(type), element_type_(element_type), size_(size), payload_(payload) {}

  std::string_view key() const { return key_; }
  MetaType type() const { return type_; }
  bool is_array() const { return type_ == MetaType::array; }
  // Of an array: the type of its elements. Of anything else: type().
  MetaType element_type() const { return element_type_; }
  // Elements of an array, bytes of a string, 1 for anything else.
  size_t size() const { return size_; }
  std::span<const std::byte> payload() const { return payload_; }
  // "u32", "string", "array of 49152 string".
  std::string type_name() const;

  int64_t as_int64() const;            // from every integer type
  uint64_t as_uint64() const;          // from every integer type, if not negative
  double as_double() const;            // from every integer and float type
  bool as_bool() const;                // from boolean
  std::string_view as_string() const;  // from string; any bytes, not necessarily UTF-8

  // Whole arrays; the views point into the file.
  std::vector<std::string_view> strings() const;
  std::vector<int64_t> integers() const;  // from every integer type and boolean
  std::vector<float> floats() const;      // from every integer and float type

  // Converts to T: bool, an integer type (range-checked), float, double, std::string_view,
  // std::string, or a vector of std::string_view, std::string, int32_t, int64_t or float.
  template <class T>
  T as() const;

 private:
  std::string_view key_;
  MetaType type_;
  MetaType element_type_;
  size_t size_;
  std::span<const std::byte> payload_;

  [[noreturn]] void wrong_type(std::string_view expected) const;
  [[noreturn]] void out_of_range(std::string_view expected) const;
  bool has_integers() const;
  bool has_floats() const;
  int64_t checked_integer(int64_t low, int64_t high, std::string_view expected) const;
  std::vector<int64_t> checked_integers(int64_t low, int64_t high, std::string_view expected) const;
};

// All values of a file in file order. Keys are unique.
class Metadata {
 public:
  // null if the key is absent.
  const MetaValue* find(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr; }
  // Throws FormatError if the key is absent or its value is not a T (see MetaValue::as).
  template <class T>
  T get(std::string_view key) const {
    return require(key).template as<T>();
  }
  // `fallback` if the key is absent; throws FormatError if it is present and not a T.
  template <class T>
  T get_or(std::string_view key, T fallback) const {
    const MetaValue* value = find(key);
    return value ? value->template as<T>() : fallback;
  }

  size_t size() const { return values_.size(); }
  std::vector<MetaValue>::const_iterator begin() const { return values_.begin(); }
  std::vector<MetaValue>::const_iterator end() const { return values_.end(); }

  // Appends; false (and nothing is done) if the key exists already. For readers of files.
  bool add(const MetaValue& value);

 private:
  std::vector<MetaValue> values_;
  std::map<std::string_view, size_t> index_;  // ordered: no hash to attack

  const MetaValue& require(std::string_view key) const;
};

// ---------------------------------------------------------------------------------------------

template <class T>
T MetaValue::as() const {
  if constexpr (std::is_same_v<T, bool>) {
    return as_bool();
  } else if constexpr (std::is_same_v<T, uint64_t>) {
    return as_uint64();
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return as_int64();
  } else if constexpr (std::is_integral_v<T>) {
    static_assert(sizeof(T) <= 4);
    constexpr std::string_view kExpected = std::is_signed_v<T> ? (sizeof(T) == 4   ? "i32"
                                                                  : sizeof(T) == 2 ? "i16"
                                                                                   : "i8")
                                                               : (sizeof(T) == 4   ? "u32"
                                                                  : sizeof(T) == 2 ? "u16"
                                                                                   : "u8");
    return static_cast<T>(
        checked_integer(std::numeric_limits<T>::min(), std::numeric_limits<T>::max(), kExpected));
  } else if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(as_double());
  } else if constexpr (std::is_same_v<T, std::string_view> || std::is_same_v<T, std::string>) {
    return T(as_string());
  } else if constexpr (std::is_same_v<T, std::vector<std::string_view>>) {
    return strings();
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    const std::vector<std::string_view> views = strings();
    return T(views.begin(), views.end());
  } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
    return integers();
  } else if constexpr (std::is_same_v<T, std::vector<int32_t>>) {
    const std::vector<int64_t> wide = checked_integers(INT32_MIN, INT32_MAX, "array of i32");
    T narrow(wide.size());
    for (size_t i = 0; i < wide.size(); ++i) narrow[i] = static_cast<int32_t>(wide[i]);
    return narrow;
  } else {
    static_assert(std::is_same_v<T, std::vector<float>>, "not a metadata type");
    return floats();
  }
}

}  // namespace kve
