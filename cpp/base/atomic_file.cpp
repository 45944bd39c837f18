#include "base/atomic_file.h"

#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/printable.h"

#if defined(__unix__) || defined(__APPLE__)
#define KVE_HAS_FSYNC 1
#include <fcntl.h>
#include <unistd.h>
#endif

namespace kve {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view what, int code) {
  throw IoError(message(printable(path.string(), 1024), ": ", what, ": ",
                        std::generic_category().message(code)));
}

// Unique among the processes and threads that may write beside `path`.
std::filesystem::path temporary_name(const std::filesystem::path& path) {
  static std::atomic<unsigned> counter{0};
#ifdef KVE_HAS_FSYNC
  const std::string suffix = message(".tmp-", ::getpid(), "-", counter.fetch_add(1));
#else
  const std::string suffix = message(".tmp-", counter.fetch_add(1));
#endif
  std::filesystem::path result = path;
  result += suffix;
  return result;
}

// Makes a renamed entry survive a power failure. Best effort: some file systems refuse it.
void sync_directory([[maybe_unused]] const std::filesystem::path& path) {
#ifdef KVE_HAS_FSYNC
  const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
  const int descriptor = ::open(parent.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
#endif
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  // "x": fail rather than write into a file that exists, such as a leftover or a planted link.
  for (int attempt = 0; attempt < 100 && !file_; ++attempt) {
    temporary_ = temporary_name(path_);
    file_ = std::fopen(temporary_.string().c_str(), "wbx");
    if (!file_ && errno != EEXIST) break;
  }
  if (!file_) fail(path_, "cannot create the file", errno);
}

AtomicFile::~AtomicFile() {
  if (!file_) return;
  std::fclose(file_);
  std::error_code ignored;
  std::filesystem::remove(temporary_, ignored);
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  KVE_ASSERT(file_);
  if (bytes.empty()) return;
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) {
    fail(path_, "cannot write", errno);
  }
}

void AtomicFile::commit() {
  KVE_ASSERT(file_);
  if (std::fflush(file_) != 0) fail(path_, "cannot write", errno);
#ifdef KVE_HAS_FSYNC
  if (::fsync(::fileno(file_)) != 0) fail(path_, "cannot write", errno);
#endif
  std::FILE* file = std::exchange(file_, nullptr);
  std::error_code error;
  if (std::fclose(file) != 0) {
    error = std::error_code(errno, std::generic_category());
  } else {
    std::filesystem::rename(temporary_, path_, error);
  }
  if (error) {
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
    throw IoError(message(printable(path_.string(), 1024), ": cannot write: ", error.message()));
  }
  sync_directory(path_);
}

}  // namespace kve
