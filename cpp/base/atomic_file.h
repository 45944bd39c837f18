// Writing a file so that its name never refers to half of it.
#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <span>

namespace kve {

// Collects bytes in a temporary file beside `path`; commit() flushes it to the disk and renames it
// over `path`. A file that is not committed (an exception, Ctrl-C handled by unwinding) is removed,
// and whatever was at `path` before stays as it was.
//
//   AtomicFile out(path);
//   out.write(header);
//   out.write(body);
//   out.commit();
class AtomicFile {
 public:
  // Throws IoError if the temporary file cannot be created.
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Appends (buffered). Throws IoError, for example when the disk is full.
  void write(std::span<const std::byte> bytes);
  // At most once, after which nothing may be written. Throws IoError; the destination is then
  // unchanged.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  std::FILE* file_ = nullptr;
};

}  // namespace kve
