#include "base/read_soon.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/mapped_file.h"
#include "base/temporary_folder.h"

#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace kve {
namespace {

TEST(ReadSoon, TakesAnyMemoryAndChangesNothing) {
  std::vector<std::byte> bytes(100000, std::byte{7});
  read_soon({});
  read_soon({bytes.data() + 1, 1});
  read_soon({bytes.data() + 4097, 90000});
  EXPECT_EQ(bytes, std::vector<std::byte>(100000, std::byte{7}));
}

#ifdef __linux__
size_t resident_pages(std::span<const std::byte> part) {
  std::vector<unsigned char> pages(part.size() / 4096 + 1);
  if (::mincore(const_cast<std::byte*>(part.data()), part.size(), pages.data()) != 0) return 0;
  size_t n = 0;
  for (const unsigned char page : pages) n += page & 1;
  return n;
}

TEST(ReadSoon, BringsAFileFromTheDisk) {
  const test::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "pages";
  std::ofstream(path) << std::string(size_t{16} << 20, 'x');
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  ASSERT_GE(descriptor, 0);
  ::fsync(descriptor);
  ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  ::close(descriptor);
  const MappedFile file = MappedFile::open(path);
  if (::sysconf(_SC_PAGESIZE) != 4096) GTEST_SKIP() << "counts pages of 4 KB";
  if (resident_pages(file.bytes()) != 0) GTEST_SKIP() << "this file system keeps files in memory";
  read_soon(file.bytes().subspan(1));
  for (int i = 0; i < 1000 && resident_pages(file.bytes()) < 4096; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const size_t brought = resident_pages(file.bytes());
  if (brought == 0) GTEST_SKIP() << "this system does not take the advice";
  EXPECT_EQ(brought, 4096u);
}
#endif

}  // namespace
}  // namespace kve
