// A file's bytes, read-only, without copying them where the system can map files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace kve {

// The bytes of one regular file. Mapped pages are shared with every other process that maps the
// file and are read from disk when first touched.
//
// A mapped file must not be shortened while it is in use: touching a page beyond the new end makes
// the system send SIGBUS, which ends the process, as it does in every program that maps files.
// Writers that replace a file by renaming a new one over it (base/atomic_file.h) are safe: the
// mapping keeps the old file.
class MappedFile {
 public:
  // Maps the file; reads it into memory on systems without mmap. Throws IoError when the file is
  // missing, unreadable, a directory or not a regular file.
  static MappedFile open(const std::filesystem::path& path);
  // Reads the whole file into memory (64-byte aligned). Same errors; CapacityError if memory is
  // exhausted.
  static MappedFile read(const std::filesystem::path& path);
  // A copy of bytes that are already in memory. CapacityError if memory is exhausted.
  static MappedFile copy_of(std::span<const std::byte> bytes);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  // Starts at an address aligned to at least 64 bytes. Empty for an empty file.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Lets the system take back the memory of whole pages within `part`; they are read from the file
  // again when they are next touched. Ranges outside of this file, and files that were read into
  // memory, are left alone.
  void forget(std::span<const std::byte> part) const noexcept;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;  // else allocated

  void release() noexcept;
};

}  // namespace kve
