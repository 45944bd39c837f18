#include "base/temporary_file.h"

#include <cerrno>
#include <string>
#include <system_error>

#include "base/error.h"
#include "base/printable.h"

#if defined(__unix__) || defined(__APPLE__)
#define KVE_HAS_UNLINKED_FILES 1
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
#endif

namespace kve {

#ifdef KVE_HAS_UNLINKED_FILES

namespace {

[[noreturn]] void fail(const std::filesystem::path& folder, std::string_view what) {
  const int code = errno;
  throw IoError(message("temporary file in ", printable(folder.string(), 1024), ": ", what, ": ",
                        std::generic_category().message(code)));
}

std::filesystem::path usual_folder() {
  std::error_code error;
  std::filesystem::path folder = std::filesystem::temp_directory_path(error);
  if (error) {
    throw IoError(
        message("temporary files: expected a folder in TMPDIR, found none: ", error.message()));
  }
  return folder;
}

}  // namespace

TemporaryFile::TemporaryFile(const std::filesystem::path& folder)
    : folder_(folder.empty() ? usual_folder() : folder) {
  std::string name = (folder_ / "kvengine-XXXXXX").string();
  descriptor_ = ::mkstemp(name.data());
  if (descriptor_ < 0) fail(folder_, "cannot create it");
  ::fcntl(descriptor_, F_SETFD, FD_CLOEXEC);
  if (::unlink(name.c_str()) == 0) return;
  const int code = errno;
  ::close(descriptor_);
  errno = code;
  fail(folder_, "cannot remove its name");
}

TemporaryFile::~TemporaryFile() { ::close(descriptor_); }

void TemporaryFile::write(int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(folder_, message("cannot write ", bytes.size(), " bytes"));
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += n;
  }
}

void TemporaryFile::read(int64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = ::pread(descriptor_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(folder_, message("cannot read ", bytes.size(), " bytes"));
    if (n == 0) {
      throw IoError(message("temporary file in ", printable(folder_.string(), 1024), ": expected ",
                            bytes.size(), " more bytes at ", offset, ", found its end"));
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += n;
  }
}

#else

TemporaryFile::TemporaryFile(const std::filesystem::path& folder) : folder_(folder) {
  throw UnsupportedError("temporary files: expected a POSIX system, found another");
}
TemporaryFile::~TemporaryFile() = default;
void TemporaryFile::write(int64_t /*offset*/, std::span<const std::byte> /*bytes*/) {}
void TemporaryFile::read(int64_t /*offset*/, std::span<std::byte> /*bytes*/) const {}

#endif

}  // namespace kve
