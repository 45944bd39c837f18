// Parses the bytes of one GGUF file, which may be one part of a split model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gguf/gguf_file.h"
#include "gguf/metadata.h"

namespace kve::gguf {

struct ParsedFile {
  uint32_t version = 0;
  uint64_t alignment = 0;
  Metadata metadata;                // views into the bytes
  std::vector<TensorInfo> tensors;  // data inside the bytes; names may still repeat
};

// `name` starts every message. Throws FormatError or UnsupportedError.
ParsedFile parse(std::span<const std::byte> bytes, const std::string& name);

}  // namespace kve::gguf
