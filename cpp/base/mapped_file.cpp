#include "base/mapped_file.h"

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/printable.h"

#if defined(__unix__) || defined(__APPLE__)
#define KVE_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace kve {
namespace {

constexpr std::align_val_t kAlignment{64};

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view reason) {
  throw IoError(message(printable(path.string(), 1024), ": ", reason));
}

[[noreturn]] void fail_errno(const std::filesystem::path& path, std::string_view what, int code) {
  fail(path, message(what, ": ", std::generic_category().message(code)));
}

std::byte* allocate(const std::filesystem::path& path, uint64_t size) {
  void* memory = size <= std::numeric_limits<size_t>::max() / 2
                     ? ::operator new(static_cast<size_t>(size), kAlignment, std::nothrow)
                     : nullptr;
  if (!memory) {
    throw CapacityError(message(printable(path.string(), 1024), ": cannot allocate ", size,
                                " bytes to read the file into memory"));
  }
  return static_cast<std::byte*>(memory);
}

// A size that is known, as far as the portable library can tell, to be that of a regular file.
uint64_t regular_file_size(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) fail(path, "no such file");
  if (std::filesystem::is_directory(status)) fail(path, "expected a file, found a directory");
  if (!std::filesystem::is_regular_file(status)) fail(path, "expected a regular file");
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) fail(path, "cannot read the file's size: " + error.message());
  return size;
}

}  // namespace

MappedFile MappedFile::read(const std::filesystem::path& path) {
  const uint64_t size = regular_file_size(path);
  std::FILE* file = std::fopen(path.string().c_str(), "rb");
  if (!file) fail_errno(path, "cannot open the file", errno);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> closer(file, &std::fclose);
  MappedFile result;
  if (size == 0) return result;
  std::byte* data = allocate(path, size);
  result.data_ = data;
  result.size_ = static_cast<size_t>(size);
  const size_t found = std::fread(data, 1, result.size_, file);
  if (found != result.size_) {
    fail(path, message("expected ", size, " bytes, could read only ", found));
  }
  return result;
}

MappedFile MappedFile::copy_of(std::span<const std::byte> bytes) {
  MappedFile result;
  if (bytes.empty()) return result;
  std::byte* data = allocate("memory", bytes.size());
  std::memcpy(data, bytes.data(), bytes.size());
  result.data_ = data;
  result.size_ = bytes.size();
  return result;
}

#ifdef KVE_HAS_MMAP

MappedFile MappedFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe without a writer would wait for ever.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    if (errno == ENOENT) fail(path, "no such file");
    fail_errno(path, "cannot open the file", errno);
  }
  struct Closer {
    int descriptor;
    ~Closer() { ::close(descriptor); }
  } const closer{descriptor};
  struct stat status{};
  if (::fstat(descriptor, &status) != 0) fail_errno(path, "cannot read the file's size", errno);
  if (S_ISDIR(status.st_mode)) fail(path, "expected a file, found a directory");
  if (!S_ISREG(status.st_mode)) fail(path, "expected a regular file");
  MappedFile result;
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size == 0) return result;  // an empty range cannot be mapped
  if (size > std::numeric_limits<size_t>::max() / 2) {
    throw CapacityError(message(printable(path.string(), 1024), ": ", size,
                                " bytes are more than this machine can map"));
  }
  void* address = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, descriptor, 0);
  if (address == MAP_FAILED) fail_errno(path, message("cannot map ", size, " bytes"), errno);
  result.data_ = static_cast<const std::byte*>(address);
  result.size_ = static_cast<size_t>(size);
  result.mapped_ = true;
  return result;
}

#else

MappedFile MappedFile::open(const std::filesystem::path& path) { return read(path); }

#endif

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, false)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    mapped_ = std::exchange(other.mapped_, false);
  }
  return *this;
}

MappedFile::~MappedFile() { release(); }

void MappedFile::forget([[maybe_unused]] std::span<const std::byte> part) const noexcept {
#ifdef KVE_HAS_MMAP
  if (!mapped_ || part.data() < data_ || part.data() + part.size() > data_ + size_) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto start = (reinterpret_cast<uintptr_t>(part.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(part.data() + part.size()) / page * page;
  if (start < end) ::madvise(reinterpret_cast<void*>(start), end - start, MADV_DONTNEED);
#endif
}

void MappedFile::release() noexcept {
  if (!data_) return;
  auto* address = const_cast<std::byte*>(data_);
#ifdef KVE_HAS_MMAP
  if (mapped_) {
    ::munmap(address, size_);
    return;
  }
#endif
  ::operator delete(address, kAlignment);
}

}  // namespace kve
