// Writes GGUF files: fixtures, converted and quantized models, calibrated cache bases.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "formats/weight_formats.h"
#include "gguf/gguf_file.h"
#include "gguf/metadata.h"

namespace kve {

// Collects metadata and tensors in order, then writes them. Throws ConfigError for what no reader
// would accept: an empty or repeated name, a shape that does not fit its type, a wrong byte count.
//
//   GgufWriter writer;
//   writer.set("general.architecture", "llama");
//   writer.set("llama.block_count", uint32_t{30});
//   writer.set_array<float>("tokenizer.ggml.scores", scores);
//   writer.add_tensor("output_norm.weight", WeightType::f32, {576}, bytes);
//   writer.write("model.gguf");
class GgufWriter {
 public:
  // Fills all bytes of one tensor; called once per write.
  using Producer = std::function<void(std::span<std::byte>)>;

  // Version, metadata and tensors of `file`, which stays open as long as the writer: writing an
  // unchanged copy reproduces the file. The parts of a split become one file.
  static GgufWriter copy_of(std::shared_ptr<const GgufFile> file);

  // Adds a key, or replaces its value in place. T decides the type in the file: bool, int8_t to
  // int64_t, uint8_t to uint64_t, float, double, or anything that converts to std::string_view.
  // "general.alignment" (uint32_t) also sets the alignment of the tensor data; default 32.
  template <class T>
  void set(std::string_view key, const T& value);
  // The same for arrays; T as above, std::string or std::string_view.
  template <class T>
  void set_array(std::string_view key, std::span<const T> values);
  template <class T>
  void set_array(std::string_view key, const std::vector<T>& values) {
    set_array(key, std::span<const T>(values));
  }
  // A copy of `value`, of whatever type, under `key`.
  void set_value(std::string_view key, const MetaValue& value);
  void erase(std::string_view key);

  // `shape` in ggml order. `bytes` are not copied: they must stay valid until the last write.
  void add_tensor(std::string name, WeightType type, std::vector<int64_t> shape,
                  std::span<const std::byte> bytes);
  void add_tensor(std::string name, WeightType type, std::vector<int64_t> shape, Producer producer);

  // Replaces `path` atomically. Throws IoError; `path` is then as it was.
  void write(const std::filesystem::path& path) const;
  std::vector<std::byte> to_bytes() const;

 private:
  struct Item {
    std::string key;
    MetaType type;
    MetaType element_type;
    size_t size;
    std::vector<std::byte> payload;  // as MetaValue::payload()
  };
  struct Tensor {
    std::string name;
    WeightType type;
    std::vector<int64_t> shape;
    size_t bytes;
    std::span<const std::byte> data;  // or:
    Producer producer;
  };
  using Sink = std::function<void(std::span<const std::byte>)>;

  std::shared_ptr<const GgufFile> source_;
  uint32_t version_ = 3;
  std::vector<Item> items_;
  std::vector<Tensor> tensors_;
  std::set<std::string> tensor_names_;

  template <class T>
  static constexpr MetaType type_of();
  template <class T>
  static void append(std::vector<std::byte>& out, const T& value);
  static void append_bytes(std::vector<std::byte>& out, std::span<const std::byte> bytes);
  static void append_string(std::vector<std::byte>& out, std::string_view text, bool with_length);
  void set_item(std::string_view key, MetaType type, MetaType element_type, size_t size,
                std::vector<std::byte> payload);
  void add(Tensor tensor);
  uint64_t alignment() const;
  std::vector<std::byte> header() const;
  void emit(const Sink& sink) const;
};

// ---------------------------------------------------------------------------------------------

template <class T>
constexpr MetaType GgufWriter::type_of() {
  if constexpr (std::is_same_v<T, bool>)
    return MetaType::boolean;
  else if constexpr (std::is_same_v<T, float>)
    return MetaType::f32;
  else if constexpr (std::is_same_v<T, double>)
    return MetaType::f64;
  else if constexpr (std::is_integral_v<T>) {
    constexpr bool kSigned = std::is_signed_v<T>;
    if constexpr (sizeof(T) == 1)
      return kSigned ? MetaType::i8 : MetaType::u8;
    else if constexpr (sizeof(T) == 2)
      return kSigned ? MetaType::i16 : MetaType::u16;
    else if constexpr (sizeof(T) == 4)
      return kSigned ? MetaType::i32 : MetaType::u32;
    else
      return kSigned ? MetaType::i64 : MetaType::u64;
  } else {
    static_assert(std::is_convertible_v<const T&, std::string_view>, "not a metadata type");
    return MetaType::string;
  }
}

template <class T>
void GgufWriter::append(std::vector<std::byte>& out, const T& value) {
  append_bytes(out, std::as_bytes(std::span<const T, 1>(&value, 1)));
}

template <class T>
void GgufWriter::set(std::string_view key, const T& value) {
  constexpr MetaType kType = type_of<T>();
  std::vector<std::byte> payload;
  if constexpr (kType == MetaType::string)
    append_string(payload, value, false);
  else
    append(payload, value);
  const size_t size = kType == MetaType::string ? payload.size() : 1;
  set_item(key, kType, kType, size, std::move(payload));
}

template <class T>
void GgufWriter::set_array(std::string_view key, std::span<const T> values) {
  constexpr MetaType kType = type_of<T>();
  std::vector<std::byte> payload;
  for (const T& value : values) {
    if constexpr (kType == MetaType::string)
      append_string(payload, value, true);
    else
      append(payload, value);
  }
  set_item(key, MetaType::array, kType, values.size(), std::move(payload));
}

}  // namespace kve
