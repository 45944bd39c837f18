// Builds GGUF bytes for tests field by field, independently of GgufWriter, and remembers where
// every field is so that a test can damage each of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kve::test {

class GgufBuilder {
 public:
  struct Field {
    std::string name;  // "key[2].length", "tensor[0].offset"
    size_t offset;
    size_t bytes;
  };

  std::vector<std::byte> bytes;
  std::vector<Field> fields;

  template <class T>
  GgufBuilder& number(std::string name, T value) {
    fields.push_back({std::move(name), bytes.size(), sizeof(T)});
    return raw({reinterpret_cast<const char*>(&value), sizeof(T)});
  }
  GgufBuilder& raw(std::string_view text) {
    for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
    return *this;
  }
  GgufBuilder& string(const std::string& name, std::string_view text) {
    return number(name + ".length", static_cast<uint64_t>(text.size())).raw(text);
  }
  GgufBuilder& pad(size_t alignment) {
    while (bytes.size() % alignment != 0) bytes.push_back(std::byte{0});
    return *this;
  }

  GgufBuilder& header(uint64_t n_tensors, uint64_t n_keys, uint32_t version = 3) {
    return raw("GGUF")
        .number("version", version)
        .number("tensor count", n_tensors)
        .number("key count", n_keys);
  }
  // Key and type; the caller appends the value.
  GgufBuilder& key(std::string_view text, uint32_t type) {
    const std::string name = "key[" + std::to_string(n_keys_++) + "]";
    return string(name, text).number(name + ".type", type);
  }
  template <class T>
  GgufBuilder& scalar(std::string_view text, uint32_t type, T value) {
    return key(text, type).number(std::string(text) + ".value", value);
  }
  GgufBuilder& text(std::string_view name, std::string_view value) {
    return key(name, 8).string(std::string(name) + ".value", value);
  }
  // Key, element type and count; the caller appends the elements.
  GgufBuilder& array(std::string_view name, uint32_t element_type, uint64_t count) {
    return key(name, 9)
        .number(std::string(name) + ".element type", element_type)
        .number(std::string(name) + ".count", count);
  }
  template <class T>
  GgufBuilder& numbers(std::string_view name, uint32_t element_type, const std::vector<T>& values) {
    array(name, element_type, values.size());
    for (const T& value : values) number(std::string(name) + ".element", value);
    return *this;
  }
  GgufBuilder& strings(std::string_view name, const std::vector<std::string>& values) {
    array(name, 8, values.size());
    for (const std::string& value : values) string(std::string(name) + ".element", value);
    return *this;
  }
  GgufBuilder& tensor(std::string_view text, const std::vector<uint64_t>& shape, uint32_t type,
                      uint64_t offset) {
    const std::string name = "tensor[" + std::to_string(n_tensors_++) + "]";
    string(name, text).number(name + ".dimensions", static_cast<uint32_t>(shape.size()));
    for (const uint64_t size : shape) number(name + ".size", size);
    return number(name + ".type", type).number(name + ".offset", offset);
  }
  // Tensor data: the low byte of each position counted from the start of the data.
  GgufBuilder& data(size_t n_bytes, size_t alignment = 32) {
    pad(alignment);
    for (size_t i = 0; i < n_bytes; ++i) bytes.push_back(static_cast<std::byte>(i));
    return *this;
  }

 private:
  int n_keys_ = 0;
  int n_tensors_ = 0;
};

// Every metadata type, arrays of the common ones, four tensors of three types.
inline GgufBuilder small_model(uint32_t version = 3) {
  GgufBuilder b;
  b.header(4, 17, version);
  b.text("general.architecture", "llama");
  b.scalar<uint8_t>("u8", 0, 200);
  b.scalar<int8_t>("i8", 1, -100);
  b.scalar<uint16_t>("u16", 2, 60000);
  b.scalar<int16_t>("i16", 3, -30000);
  b.scalar<uint32_t>("u32", 4, 4000000000u);
  b.scalar<int32_t>("i32", 5, -2000000000);
  b.scalar<float>("f32", 6, 1.5f);
  b.scalar<uint8_t>("boolean", 7, 1);
  b.scalar<uint64_t>("u64", 10, 18000000000000000000u);
  b.scalar<int64_t>("i64", 11, -9000000000000000000);
  b.scalar<double>("f64", 12, -0.1);
  b.scalar<uint32_t>("general.alignment", 4, 64);
  b.strings("tokenizer.ggml.tokens", {"<s>", "", "hello", "w\xc3\xb6rld"});
  b.numbers<float>("tokenizer.ggml.scores", 6, {0.0f, -1.0f, -2.5f, -3.0f});
  b.numbers<int32_t>("tokenizer.ggml.token_type", 5, {3, 1, 1, -1});
  b.numbers<uint8_t>("llama.sliding", 7, {1, 0, 1});
  b.tensor("token_embd.weight", {64, 4}, 0, 0);             // F32: 1024 bytes
  b.tensor("blk.0.ffn_up.weight", {64, 2, 3}, 2, 1024);     // Q4_0: 12 blocks of 18 bytes
  b.tensor("blk.0.attn_q.weight", {32, 1, 1, 1}, 8, 1280);  // Q8_0: 34 bytes
  b.tensor("output_norm.weight", {16}, 0, 1344);            // F32: 64 bytes
  return b.data(1344 + 64, 64);
}

}  // namespace kve::test
