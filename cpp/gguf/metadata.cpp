#include "gguf/metadata.h"

#include <array>
#include <cstring>

#include "base/error.h"
#include "base/printable.h"

namespace kve {
namespace {

struct TypeTraits {
  std::string_view name;
  size_t size;
};

constexpr std::array<TypeTraits, kMetaTypes> kTypes = {{{"u8", 1},
                                                        {"i8", 1},
                                                        {"u16", 2},
                                                        {"i16", 2},
                                                        {"u32", 4},
                                                        {"i32", 4},
                                                        {"f32", 4},
                                                        {"boolean", 1},
                                                        {"string", 0},
                                                        {"array", 0},
                                                        {"u64", 8},
                                                        {"i64", 8},
                                                        {"f64", 8}}};

const TypeTraits& traits(MetaType type) {
  const auto index = static_cast<size_t>(type);
  KVE_ASSERT(index < kTypes.size());
  return kTypes[index];
}

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

// Calls fn with the number at `at`, in the C++ type that `type` names; booleans count as uint8_t.
template <class Fn>
auto visit_number(MetaType type, const std::byte* at, const Fn& fn) {
  switch (type) {
    case MetaType::boolean:
    case MetaType::u8:
      return fn(load<uint8_t>(at));
    case MetaType::i8:
      return fn(load<int8_t>(at));
    case MetaType::u16:
      return fn(load<uint16_t>(at));
    case MetaType::i16:
      return fn(load<int16_t>(at));
    case MetaType::u32:
      return fn(load<uint32_t>(at));
    case MetaType::i32:
      return fn(load<int32_t>(at));
    case MetaType::u64:
      return fn(load<uint64_t>(at));
    case MetaType::i64:
      return fn(load<int64_t>(at));
    case MetaType::f32:
      return fn(load<float>(at));
    case MetaType::f64:
      return fn(load<double>(at));
    default:
      KVE_ASSERT(false);
      return fn(uint8_t{0});
  }
}

// Of an integer type. False if the value exceeds int64_t.
bool load_integer(MetaType type, const std::byte* at, int64_t& out) {
  if (type == MetaType::u64 && load<uint64_t>(at) > INT64_MAX) return false;
  out = visit_number(type, at, [](auto number) { return static_cast<int64_t>(number); });
  return true;
}

}  // namespace

std::string_view to_string(MetaType type) { return traits(type).name; }
size_t size_of(MetaType type) { return traits(type).size; }

std::string MetaValue::type_name() const {
  if (!is_array()) return std::string(to_string(type_));
  return message("array of ", size_, " ", to_string(element_type_));
}

void MetaValue::wrong_type(std::string_view expected) const {
  throw FormatError(
      message("metadata ", quoted(key_), ": expected ", expected, ", found ", type_name()));
}

void MetaValue::out_of_range(std::string_view expected) const {
  throw FormatError(message("metadata ", quoted(key_), ": expected ", expected, ", found ",
                            is_array() ? "an element" : "a value", " outside its range"));
}

bool MetaValue::has_floats() const {
  return element_type_ == MetaType::f32 || element_type_ == MetaType::f64;
}

bool MetaValue::has_integers() const {
  return size_of(element_type_) != 0 && !has_floats() && element_type_ != MetaType::boolean;
}

int64_t MetaValue::checked_integer(int64_t low, int64_t high, std::string_view expected) const {
  if (is_array() || !has_integers()) wrong_type(expected);
  int64_t value = 0;
  if (!load_integer(type_, payload_.data(), value) || value < low || value > high) {
    out_of_range(expected);
  }
  return value;
}

int64_t MetaValue::as_int64() const { return checked_integer(INT64_MIN, INT64_MAX, "i64"); }

uint64_t MetaValue::as_uint64() const {
  if (type_ == MetaType::u64) return load<uint64_t>(payload_.data());
  return static_cast<uint64_t>(checked_integer(0, INT64_MAX, "u64"));
}

double MetaValue::as_double() const {
  if (is_array() || !(has_integers() || has_floats())) wrong_type("a number");
  return visit_number(type_, payload_.data(),
                      [](auto number) { return static_cast<double>(number); });
}

bool MetaValue::as_bool() const {
  if (type_ != MetaType::boolean) wrong_type("boolean");
  return load<uint8_t>(payload_.data()) != 0;
}

std::string_view MetaValue::as_string() const {
  if (type_ != MetaType::string) wrong_type("string");
  return {reinterpret_cast<const char*>(payload_.data()), payload_.size()};
}

std::vector<std::string_view> MetaValue::strings() const {
  if (!is_array() || element_type_ != MetaType::string) wrong_type("array of string");
  std::vector<std::string_view> result;
  result.reserve(size_);
  const std::byte* at = payload_.data();
  for (size_t i = 0; i < size_; ++i) {
    const auto length = static_cast<size_t>(load<uint64_t>(at));
    at += sizeof(uint64_t);
    result.emplace_back(reinterpret_cast<const char*>(at), length);
    at += length;
  }
  return result;
}

std::vector<int64_t> MetaValue::integers() const {
  return checked_integers(INT64_MIN, INT64_MAX, "array of i64");
}

std::vector<int64_t> MetaValue::checked_integers(int64_t low, int64_t high,
                                                 std::string_view expected) const {
  if (!is_array() || !(has_integers() || element_type_ == MetaType::boolean)) wrong_type(expected);
  std::vector<int64_t> result(size_);
  const size_t stride = size_of(element_type_);
  for (size_t i = 0; i < size_; ++i) {
    if (!load_integer(element_type_, payload_.data() + i * stride, result[i]) || result[i] < low ||
        result[i] > high) {
      out_of_range(expected);
    }
  }
  return result;
}

std::vector<float> MetaValue::floats() const {
  if (!is_array() || !(has_integers() || has_floats())) wrong_type("array of f32");
  std::vector<float> result(size_);
  const size_t stride = size_of(element_type_);
  for (size_t i = 0; i < size_; ++i) {
    result[i] = visit_number(element_type_, payload_.data() + i * stride,
                             [](auto number) { return static_cast<float>(number); });
  }
  return result;
}

const MetaValue* Metadata::find(std::string_view key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &values_[found->second];
}

const MetaValue& Metadata::require(std::string_view key) const {
  const MetaValue* value = find(key);
  if (!value) throw FormatError(message("metadata ", quoted(key), " is missing from the file"));
  return *value;
}

bool Metadata::add(const MetaValue& value) {
  if (!index_.emplace(value.key(), values_.size()).second) return false;
  values_.push_back(value);
  return true;
}

}  // namespace kve
