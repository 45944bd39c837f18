#include "gguf/gguf_file.h"

#include <utility>

#include "base/error.h"
#include "base/printable.h"
#include "gguf/parser.h"
#include "gguf/split.h"

namespace kve {

using gguf::ParsedFile;
using gguf::SplitPart;

int64_t TensorInfo::rows() const { return elements() / row_length(); }

int64_t TensorInfo::elements() const {
  int64_t result = 1;
  for (const int64_t size : shape) result *= size;
  return result;
}

std::string TensorInfo::shape_string() const {
  std::string result = "[";
  for (const int64_t size : shape) {
    if (result.size() > 1) result += ", ";
    result += std::to_string(size);
  }
  return result + "]";
}

std::shared_ptr<const GgufFile> GgufFile::open(const std::filesystem::path& path) {
  const std::shared_ptr<GgufFile> file(new GgufFile);
  file->path_ = path;
  const std::string name = printable(path.string(), 1024);
  ParsedFile first = file->open_part(MappedFile::open(path), name);
  const SplitPart split = gguf::split_part(first.metadata, name);
  file->adopt_first(std::move(first));
  if (split.count > 1) {
    if (split.number != 0) {
      throw FormatError(message(name, ": this is part ", split.number + 1, " of ", split.count,
                                " of a split model: open the part whose name ends in ",
                                gguf::split_suffix(0, split.count)));
    }
    file->open_remaining_parts(split, name);
  }
  file->index_tensors(name);
  return file;
}

std::shared_ptr<const GgufFile> GgufFile::from_bytes(std::span<const std::byte> bytes,
                                                     std::string_view name) {
  const std::shared_ptr<GgufFile> file(new GgufFile);
  file->path_ = std::filesystem::path(name);
  const std::string printed = printable(name, 1024);
  ParsedFile parsed = file->open_part(MappedFile::copy_of(bytes), printed);
  const SplitPart split = gguf::split_part(parsed.metadata, printed);
  if (split.count > 1) {
    throw FormatError(message(printed, ": expected a whole model, found part ", split.number + 1,
                              " of ", split.count));
  }
  file->adopt_first(std::move(parsed));
  file->index_tensors(printed);
  return file;
}

ParsedFile GgufFile::open_part(MappedFile file, const std::string& name) {
  const std::span<const std::byte> bytes = file.bytes();
  file_bytes_ += bytes.size();
  files_.push_back(std::move(file));
  return gguf::parse(bytes, name);
}

void GgufFile::adopt_first(ParsedFile parsed) {
  version_ = parsed.version;
  alignment_ = parsed.alignment;
  metadata_ = std::move(parsed.metadata);
  tensors_ = std::move(parsed.tensors);
}

void GgufFile::open_remaining_parts(const SplitPart& first, const std::string& first_name) {
  const std::string prefix = gguf::split_prefix(path_.string(), first, first_name);
  for (uint32_t number = 1; number < first.count; ++number) {
    const std::filesystem::path path = prefix + gguf::split_suffix(number, first.count);
    const std::string name = printable(path.string(), 1024);
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      throw IoError(message(first_name, ": part ", number + 1, " of ", first.count,
                            " is missing: expected the file ", name));
    }
    ParsedFile parsed = open_part(MappedFile::open(path), name);
    gguf::check_belongs(first, metadata_, gguf::split_part(parsed.metadata, name), parsed.metadata,
                        number, name);
    // Reported as one file, which can only promise the weakest alignment.
    alignment_ = std::min(alignment_, parsed.alignment);
    tensors_.insert(tensors_.end(), std::make_move_iterator(parsed.tensors.begin()),
                    std::make_move_iterator(parsed.tensors.end()));
  }
  if (tensors_.size() != first.n_tensors) {
    throw FormatError(message(first_name, ": expected ", first.n_tensors, " tensors in ",
                              first.count, " parts, found ", tensors_.size()));
  }
}

void GgufFile::index_tensors(const std::string& name) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!tensor_index_.emplace(tensors_[i].name, i).second) {
      throw FormatError(message(name, ": tensor ", quoted(tensors_[i].name), " appears twice"));
    }
  }
}

const TensorInfo* GgufFile::find(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

const TensorInfo& GgufFile::tensor(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (!info) {
    throw FormatError(message(printable(path_.string(), 1024), ": tensor ", quoted(name),
                              " is missing from the file"));
  }
  return *info;
}

}  // namespace kve
