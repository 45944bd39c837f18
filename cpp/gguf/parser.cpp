#include "gguf/parser.h"

#include <algorithm>
#include <utility>

#include "gguf/byte_reader.h"
#include "gguf/layout.h"

namespace kve::gguf {
namespace {

struct Header {
  uint32_t version;
  uint64_t n_tensors;
  uint64_t n_metadata;
};

Header read_header(ByteReader& reader) {
  if (reader.remaining() == 0) reader.fail("expected a GGUF file, found an empty file");
  const auto magic = reader.take(std::min<uint64_t>(kMagic.size(), reader.remaining()), "magic");
  const std::string_view found(reinterpret_cast<const char*>(magic.data()), magic.size());
  if (found != kMagic) {
    reader.fail(message("expected a GGUF file, found one that starts with ", quoted(found)));
  }
  reader.set_subject("header");
  Header header{};
  header.version = reader.number<uint32_t>("version");
  // Version 3 introduced big-endian files; their version reads as 3 << 24 here.
  if (header.version != 0 && (header.version & 0xffffu) == 0) {
    reader.unsupported("expected a little-endian file, found a big-endian one");
  }
  if (header.version < kMinVersion || header.version > kMaxVersion) {
    reader.unsupported(message("expected GGUF version ", kMinVersion, " or ", kMaxVersion,
                               ", found version ", header.version));
  }
  header.n_tensors = reader.number<uint64_t>("tensor count");
  header.n_metadata = reader.count(kMaxMetadata, kMinMetadataBytes, "metadata count");
  // Again before the tensors are read; here so that a wild count is called what it is.
  reader.check_count(header.n_tensors, kMaxTensors, kMinTensorInfoBytes, "tensor count");
  return header;
}

MetaType read_type(ByteReader& reader, std::string_view what) {
  const auto type = reader.number<uint32_t>(what);
  if (type >= kMetaTypes) {
    reader.fail(message(what, ": expected a number below ", kMetaTypes, ", found ", type));
  }
  return static_cast<MetaType>(type);
}

void check_booleans(const ByteReader& reader, std::span<const std::byte> bytes) {
  for (const std::byte byte : bytes) {
    if (byte > std::byte{1}) {
      reader.fail(message("expected a boolean of 0 or 1, found ", static_cast<unsigned>(byte)));
    }
  }
}

MetaValue read_array(ByteReader& reader, std::string_view key) {
  const MetaType element = read_type(reader, "array element type");
  if (element == MetaType::array) reader.unsupported("arrays of arrays are not supported");
  const bool strings = element == MetaType::string;
  const uint64_t element_bytes = strings ? sizeof(uint64_t) : size_of(element);
  const uint64_t count = reader.count(kMaxArray, element_bytes, "array length");
  if (!strings) {
    const auto payload = reader.take(count * element_bytes, "array");
    if (element == MetaType::boolean) check_booleans(reader, payload);
    return {key, MetaType::array, element, static_cast<size_t>(count), payload};
  }
  ByteReader ahead = reader;
  for (uint64_t i = 0; i < count; ++i) ahead.string("string in array");
  const auto payload = reader.take(ahead.position() - reader.position(), "array");
  return {key, MetaType::array, element, static_cast<size_t>(count), payload};
}

MetaValue read_value(ByteReader& reader, std::string_view key) {
  const MetaType type = read_type(reader, "value type");
  if (type == MetaType::array) return read_array(reader, key);
  if (type == MetaType::string) {
    const std::string_view text = reader.string("string");
    return {key, type, type, text.size(), std::as_bytes(std::span(text))};
  }
  const auto payload = reader.take(size_of(type), "value");
  if (type == MetaType::boolean) check_booleans(reader, payload);
  return {key, type, type, 1, payload};
}

Metadata read_metadata(ByteReader& reader, uint64_t count) {
  Metadata metadata;
  std::string_view previous;
  for (uint64_t i = 0; i < count; ++i) {
    reader.set_subject(i == 0 ? "first metadata key" : "metadata key after", previous);
    const std::string_view key = reader.string("key");
    if (key.empty() || key.size() > kMaxKeyBytes) {
      reader.fail(message("expected a key of 1 to ", kMaxKeyBytes, " bytes, found ", key.size()));
    }
    reader.set_subject("metadata", key);
    if (!metadata.add(read_value(reader, key))) reader.fail("the key appears twice");
    previous = key;
  }
  return metadata;
}

uint64_t read_alignment(ByteReader& reader, const Metadata& metadata) {
  const MetaValue* value = metadata.find(kAlignmentKey);
  if (!value) return kDefaultAlignment;
  reader.set_subject("metadata", kAlignmentKey);
  if (value->type() != MetaType::u32) {
    reader.fail(message("expected u32, found ", value->type_name()));
  }
  const uint64_t alignment = value->as_uint64();
  if (!is_valid_alignment(alignment)) {
    reader.fail(message("expected a power of two from ", kMinAlignment, " to ", kMaxAlignment,
                        ", found ", alignment));
  }
  return alignment;
}

// Checks the shape against the format and returns the tensor's bytes.
uint64_t checked_bytes(const ByteReader& reader, const WeightFormat& format,
                       const TensorInfo& tensor) {
  for (const int64_t size : tensor.shape) {
    // Sizes are unsigned in the file: a negative one here was above INT64_MAX there.
    if (size < 1) {
      reader.fail(
          message("expected sizes from 1 to ", INT64_MAX, ", found ", static_cast<uint64_t>(size)));
    }
  }
  if (tensor.row_length() % format.block_values != 0) {
    reader.fail(message("expected rows that are a multiple of ", format.block_values, " for type ",
                        format.name, ", found ", tensor.row_length()));
  }
  const std::optional<int64_t> elements = product(tensor.shape);
  const std::optional<uint64_t> bytes = elements ? tensor_bytes(format, *elements) : std::nullopt;
  if (!bytes) reader.fail(message("the product of ", tensor.shape_string(), " is too large"));
  return *bytes;
}

// The offset from the start of the tensor data is returned, for it cannot be checked yet.
uint64_t read_tensor(ByteReader& reader, TensorInfo& tensor) {
  const std::string_view name = reader.string("name");
  if (name.empty() || name.size() > kMaxTensorNameBytes) {
    reader.fail(
        message("expected a name of 1 to ", kMaxTensorNameBytes, " bytes, found ", name.size()));
  }
  reader.set_subject("tensor", name);
  tensor.name = name;
  const auto n_dims = reader.number<uint32_t>("number of dimensions");
  if (n_dims < 1 || n_dims > kMaxDims) {
    reader.fail(message("expected 1 to ", kMaxDims, " dimensions, found ", n_dims));
  }
  for (uint32_t i = 0; i < n_dims; ++i) tensor.shape.push_back(reader.number<int64_t>("shape"));
  const auto type = reader.number<uint32_t>("type");
  const WeightFormat* format = find_format(type);
  if (!format) reader.unsupported(message("type number ", type, " is not supported"));
  tensor.type = format->type;
  tensor.bytes = static_cast<size_t>(checked_bytes(reader, *format, tensor));
  return reader.number<uint64_t>("offset");
}

// Turns offsets into pointers. `offsets` count from the start of the tensor data.
void place_tensors(ByteReader& reader, std::span<const std::byte> bytes, uint64_t alignment,
                   std::span<const uint64_t> offsets, std::span<TensorInfo> tensors) {
  const uint64_t start = align_up(reader.position(), alignment);
  const TensorInfo* last = nullptr;  // of those that reach beyond the end, the one furthest out
  uint64_t furthest_end = bytes.size();
  for (size_t i = 0; i < tensors.size(); ++i) {
    reader.set_subject("tensor", tensors[i].name);
    if (offsets[i] % alignment != 0) {
      reader.fail(
          message("expected an offset that is a multiple of ", alignment, ", found ", offsets[i]));
    }
    // Bytes and start are below 2^63, so that only the offset can overflow the sum.
    const uint64_t fixed = start + tensors[i].bytes;
    const uint64_t end = offsets[i] > UINT64_MAX - fixed ? UINT64_MAX : fixed + offsets[i];
    if (end <= bytes.size()) {
      tensors[i].data = bytes.data() + static_cast<size_t>(start + offsets[i]);
    } else if (end > furthest_end) {
      furthest_end = end;
      last = &tensors[i];
    }
  }
  if (last) {
    reader.set_subject("tensor", last->name);
    reader.fail(message("the file is cut short or the offset wrong: expected at least ",
                        furthest_end, " bytes, found ", bytes.size()));
  }
}

}  // namespace

ParsedFile parse(std::span<const std::byte> bytes, const std::string& name) {
  ByteReader reader(bytes, name);
  const Header header = read_header(reader);
  ParsedFile file;
  file.version = header.version;
  file.metadata = read_metadata(reader, header.n_metadata);
  file.alignment = read_alignment(reader, file.metadata);
  reader.set_subject("header");
  reader.check_count(header.n_tensors, kMaxTensors, kMinTensorInfoBytes, "tensor count");
  file.tensors.resize(static_cast<size_t>(header.n_tensors));
  std::vector<uint64_t> offsets;
  offsets.reserve(file.tensors.size());
  std::string_view previous;
  for (TensorInfo& tensor : file.tensors) {
    reader.set_subject(previous.empty() ? "first tensor" : "tensor after", previous);
    offsets.push_back(read_tensor(reader, tensor));
    previous = tensor.name;
  }
  place_tensors(reader, bytes, file.alignment, offsets, file.tensors);
  return file;
}

}  // namespace kve::gguf
