// A file without a name, for what memory is too small for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace kve {

// The system removes the bytes when the object is gone, or the process. Reading and writing are
// thread-safe as long as ranges do not overlap.
class TemporaryFile {
 public:
  // In a folder; empty: in that of the environment variable TMPDIR, or the system's. Throws
  // IoError, and UnsupportedError on systems without such files.
  explicit TemporaryFile(const std::filesystem::path& folder = {});
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile();

  // Throw IoError: when the disk is full, or when bytes were never written.
  void write(int64_t offset, std::span<const std::byte> bytes);
  void read(int64_t offset, std::span<std::byte> bytes) const;

 private:
  std::filesystem::path folder_;  // for messages
  int descriptor_ = -1;
};

}  // namespace kve
