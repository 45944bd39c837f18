// gguf/ reads and writes GGUF files, where weights, hyper-parameters and vocabularies come from.
// A file is hostile until checked: every count, length, offset, type and product is verified
// against the bytes that exist before it is used, and nothing is allocated in proportion to a
// number that a file merely claims. What open() returns is therefore safe to use without checks.
//
// Versions 2 and 3, little-endian. A model split into parts (name-00001-of-0000N.gguf) is opened
// through its first part and looks like one file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "formats/weight_formats.h"
#include "gguf/metadata.h"

namespace kve {

namespace gguf {
struct ParsedFile;
struct SplitPart;
}  // namespace gguf

// One tensor; `data` points into the mapping and lives as long as its GgufFile.
struct TensorInfo {
  std::string name;
  WeightType type{};
  std::vector<int64_t> shape;       // 1 to 4 sizes >= 1 in ggml order: shape[0] is the row length
  const std::byte* data = nullptr;  // aligned to GgufFile::alignment()
  size_t bytes = 0;                 // rows() * row_bytes(type, row_length())

  int64_t row_length() const { return shape[0]; }
  int64_t rows() const;      // product of shape[1..]
  int64_t elements() const;  // product of shape
  // "[576, 49152]"
  std::string shape_string() const;
};

// An opened file: immutable, shareable between models and threads.
class GgufFile {
 public:
  // Throws IoError (missing, unreadable, a directory), FormatError (not GGUF, or malformed),
  // UnsupportedError (version 1, big-endian, an unknown tensor type, nested arrays). See
  // base/mapped_file.h for what happens when another process shortens the file afterwards.
  static std::shared_ptr<const GgufFile> open(const std::filesystem::path& path);
  // Parses a copy of `bytes`; `name` stands for the path in messages. Same errors. Splits cannot
  // be opened this way.
  static std::shared_ptr<const GgufFile> from_bytes(std::span<const std::byte> bytes,
                                                    std::string_view name = "memory");

  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  const Metadata& metadata() const { return metadata_; }
  template <class T>
  T get(std::string_view key) const {
    return metadata_.get<T>(key);
  }
  template <class T>
  T get_or(std::string_view key, T fallback) const {
    return metadata_.get_or<T>(key, std::move(fallback));
  }
  bool has(std::string_view key) const { return metadata_.has(key); }

  // In file order; the parts of a split one after the other. Empty for vocabulary-only files.
  std::span<const TensorInfo> tensors() const { return tensors_; }
  // Throws FormatError if there is no such tensor.
  const TensorInfo& tensor(std::string_view name) const;
  // null if there is no such tensor.
  const TensorInfo* find(std::string_view name) const;

  // For tensor data that will hardly be read again: see MappedFile::forget.
  void forget_pages(std::span<const std::byte> data) const noexcept {
    for (const MappedFile& file : files_) file.forget(data);
  }

  const std::filesystem::path& path() const { return path_; }
  uint32_t version() const { return version_; }        // 2 or 3
  uint64_t file_bytes() const { return file_bytes_; }  // of all parts
  uint64_t alignment() const { return alignment_; }    // of tensor data; a power of two, 8 to 65536
  size_t parts() const { return files_.size(); }       // 1 unless split

 private:
  GgufFile() = default;

  std::filesystem::path path_;
  std::vector<MappedFile> files_;
  Metadata metadata_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string_view, size_t> tensor_index_;
  uint32_t version_ = 0;
  uint64_t file_bytes_ = 0;
  uint64_t alignment_ = 0;

  // `name` is the file for messages.
  gguf::ParsedFile open_part(MappedFile file, const std::string& name);
  void adopt_first(gguf::ParsedFile parsed);
  void open_remaining_parts(const gguf::SplitPart& first, const std::string& first_name);
  void index_tensors(const std::string& name);
};

}  // namespace kve
