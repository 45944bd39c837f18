#include "gguf/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/printable.h"
#include "gguf/layout.h"
#include "gguf/split.h"

namespace kve {
namespace {

using Bytes = std::vector<std::byte>;

// A tensor's byte count, or ConfigError for a shape that no reader would accept.
size_t checked_bytes(const std::string& name, WeightType type, std::span<const int64_t> shape) {
  const auto fail = [&](const auto&... reason) {
    throw ConfigError(message("tensor ", quoted(name), ": ", reason...));
  };
  if (name.empty() || name.size() > gguf::kMaxTensorNameBytes) {
    fail("expected a name of 1 to ", gguf::kMaxTensorNameBytes, " bytes, found ", name.size());
  }
  if (shape.empty() || shape.size() > gguf::kMaxDims) {
    fail("expected 1 to ", gguf::kMaxDims, " dimensions, found ", shape.size());
  }
  for (const int64_t size : shape) {
    if (size < 1) fail("expected sizes of at least 1, found ", size);
  }
  const WeightFormat& weight_format = format(type);
  if (shape[0] % weight_format.block_values != 0) {
    fail("expected rows that are a multiple of ", weight_format.block_values, " for type ",
         weight_format.name, ", found ", shape[0]);
  }
  const std::optional<int64_t> elements = gguf::product(shape);
  const std::optional<uint64_t> bytes =
      elements ? gguf::tensor_bytes(weight_format, *elements) : std::nullopt;
  if (!bytes) fail("the product of its sizes is too large");
  return static_cast<size_t>(*bytes);
}

}  // namespace

GgufWriter GgufWriter::copy_of(std::shared_ptr<const GgufFile> file) {
  GgufWriter writer;
  writer.version_ = file->version();
  for (const MetaValue& value : file->metadata()) {
    const bool about_split = value.key() == gguf::kSplitNumberKey ||
                             value.key() == gguf::kSplitCountKey ||
                             value.key() == gguf::kSplitTensorsKey;
    if (!about_split || file->parts() == 1) writer.set_value(value.key(), value);
  }
  for (const TensorInfo& tensor : file->tensors()) {
    writer.add_tensor(tensor.name, tensor.type, tensor.shape, {tensor.data, tensor.bytes});
  }
  writer.source_ = std::move(file);
  return writer;
}

void GgufWriter::append_string(Bytes& out, std::string_view text, bool with_length) {
  if (with_length) append(out, static_cast<uint64_t>(text.size()));
  append_bytes(out, std::as_bytes(std::span(text)));
}

// Not insert(): GCC 12 warns of an overflow that cannot happen when it inlines that.
void GgufWriter::append_bytes(Bytes& out, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const size_t old_size = out.size();
  out.resize(old_size + bytes.size());
  std::memcpy(out.data() + old_size, bytes.data(), bytes.size());
}

void GgufWriter::set_value(std::string_view key, const MetaValue& value) {
  set_item(key, value.type(), value.element_type(), value.size(),
           Bytes(value.payload().begin(), value.payload().end()));
}

void GgufWriter::set_item(std::string_view key, MetaType type, MetaType element_type, size_t size,
                          Bytes payload) {
  if (key.empty() || key.size() > gguf::kMaxKeyBytes) {
    throw ConfigError(
        message("metadata key: expected 1 to ", gguf::kMaxKeyBytes, " bytes, found ", key.size()));
  }
  if (key == gguf::kAlignmentKey) {
    const MetaValue value(key, type, element_type, size, payload);
    if (type != MetaType::u32 || !gguf::is_valid_alignment(value.as_uint64())) {
      throw ConfigError(message("metadata ", quoted(key), ": expected u32, a power of two from ",
                                gguf::kMinAlignment, " to ", gguf::kMaxAlignment));
    }
  }
  Item item{std::string(key), type, element_type, size, std::move(payload)};
  const auto existing = std::ranges::find(items_, key, &Item::key);
  if (existing != items_.end()) {
    *existing = std::move(item);
  } else {
    items_.push_back(std::move(item));
  }
}

void GgufWriter::erase(std::string_view key) {
  std::erase_if(items_, [&](const Item& item) { return item.key == key; });
}

void GgufWriter::add_tensor(std::string name, WeightType type, std::vector<int64_t> shape,
                            std::span<const std::byte> bytes) {
  const size_t expected = checked_bytes(name, type, shape);
  if (bytes.size() != expected) {
    throw ConfigError(
        message("tensor ", quoted(name), ": expected ", expected, " bytes, found ", bytes.size()));
  }
  add(Tensor{std::move(name), type, std::move(shape), expected, bytes, nullptr});
}

void GgufWriter::add_tensor(std::string name, WeightType type, std::vector<int64_t> shape,
                            Producer producer) {
  const size_t bytes = checked_bytes(name, type, shape);
  KVE_ASSERT(producer);
  add(Tensor{std::move(name), type, std::move(shape), bytes, {}, std::move(producer)});
}

void GgufWriter::add(Tensor tensor) {
  if (!tensor_names_.insert(tensor.name).second) {
    throw ConfigError(message("tensor ", quoted(tensor.name), " was added twice"));
  }
  tensors_.push_back(std::move(tensor));
}

uint64_t GgufWriter::alignment() const {
  const auto item = std::ranges::find(items_, gguf::kAlignmentKey, &Item::key);
  if (item == items_.end()) return gguf::kDefaultAlignment;
  uint32_t value = 0;
  std::memcpy(&value, item->payload.data(), sizeof(value));
  return value;
}

Bytes GgufWriter::header() const {
  Bytes out;
  append_string(out, gguf::kMagic, false);
  append(out, version_);
  append(out, static_cast<uint64_t>(tensors_.size()));
  append(out, static_cast<uint64_t>(items_.size()));
  for (const Item& item : items_) {
    append_string(out, item.key, true);
    append(out, static_cast<uint32_t>(item.type));
    if (item.type == MetaType::array) append(out, static_cast<uint32_t>(item.element_type));
    if (item.type == MetaType::array || item.type == MetaType::string) {
      append(out, static_cast<uint64_t>(item.size));
    }
    append_bytes(out, item.payload);
  }
  const uint64_t align = alignment();
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    append_string(out, tensor.name, true);
    append(out, static_cast<uint32_t>(tensor.shape.size()));
    for (const int64_t size : tensor.shape) append(out, static_cast<uint64_t>(size));
    append(out, static_cast<uint32_t>(tensor.type));
    append(out, offset);
    offset = gguf::align_up(offset + tensor.bytes, align);
  }
  return out;
}

void GgufWriter::emit(const Sink& sink) const {
  const uint64_t align = alignment();
  const Bytes zeros(align, std::byte{0});
  const auto pad = [&](uint64_t position) {
    const uint64_t n_bytes = gguf::align_up(position, align) - position;
    sink(std::span(zeros).first(static_cast<size_t>(n_bytes)));
  };
  const Bytes head = header();
  sink(head);
  if (!tensors_.empty()) pad(head.size());
  Bytes produced;
  for (const Tensor& tensor : tensors_) {
    if (tensor.producer) {
      produced.assign(tensor.bytes, std::byte{0});
      tensor.producer(produced);
      sink(produced);
    } else {
      sink(tensor.data);
    }
    pad(tensor.bytes);
  }
}

void GgufWriter::write(const std::filesystem::path& path) const {
  AtomicFile file(path);
  emit([&](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
}

Bytes GgufWriter::to_bytes() const {
  Bytes out;
  emit([&](std::span<const std::byte> bytes) { append_bytes(out, bytes); });
  return out;
}

}  // namespace kve
