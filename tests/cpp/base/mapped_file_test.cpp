#include "base/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/temporary_folder.h"

namespace kve::test {
namespace {

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// Both ways of getting at a file must agree, errors included.
using Opener = MappedFile (*)(const std::filesystem::path&);
class MappedFileTest : public testing::TestWithParam<Opener> {
 protected:
  TemporaryFolder folder_;

  std::string error_of(const std::filesystem::path& path) {
    try {
      GetParam()(path);
    } catch (const IoError& error) {
      return error.what();
    }
    return "no error";
  }
};

TEST_P(MappedFileTest, GivesTheBytesOfTheFile) {
  const std::string text = std::string("some\0bytes", 10) + std::string(10000, 'x');
  const MappedFile file = GetParam()(folder_.write("a", text));
  EXPECT_EQ(text_of(file), text);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.bytes().data()) % 64, 0u);
}

TEST_P(MappedFileTest, OutlivesTheNameOfTheFile) {
  const auto path = folder_.write("a", "text");
  const MappedFile file = GetParam()(path);
  std::filesystem::remove(path);
  EXPECT_EQ(text_of(file), "text");
}

TEST_P(MappedFileTest, MovesWithoutMovingTheBytes) {
  MappedFile first = GetParam()(folder_.write("a", "first"));
  MappedFile second = GetParam()(folder_.write("b", "second"));
  const std::byte* data = first.bytes().data();
  MappedFile moved = std::move(first);
  EXPECT_EQ(moved.bytes().data(), data);
  EXPECT_TRUE(first.bytes().empty());
  moved = std::move(second);
  EXPECT_EQ(text_of(moved), "second");
  MappedFile& alias = moved;
  moved = std::move(alias);
  EXPECT_EQ(text_of(moved), "second");
}

TEST_P(MappedFileTest, EmptyFileIsEmpty) {
  EXPECT_TRUE(GetParam()(folder_.write("a", "")).bytes().empty());
}

TEST_P(MappedFileTest, SaysWhatIsWrongWithAPath) {
  EXPECT_EQ(error_of(folder_ / "missing"), (folder_ / "missing").string() + ": no such file");
  EXPECT_EQ(error_of(folder_.path()),
            folder_.path().string() + ": expected a file, found a directory");
  const auto below_file = folder_.write("a", "x") / "b";
  EXPECT_NE(error_of(below_file), "no error");
}

TEST_P(MappedFileTest, RefusesAPipeInsteadOfWaitingForIt) {
  const auto pipe = folder_ / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(error_of(pipe), pipe.string() + ": expected a regular file");
}

TEST_P(MappedFileTest, SaysThatAFileCannotBeRead) {
  const auto path = folder_.write("secret", "x");
  ASSERT_EQ(chmod(path.c_str(), 0), 0);
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  const std::string expected = path.string() + ": cannot open the file: Permission denied";
  // In a child, because the super-user may read every file and must become somebody else first.
  const auto open_as_nobody = [&] {
    constexpr uid_t kNobody = 65534;
    if (geteuid() == 0 && setuid(kNobody) != 0) std::_Exit(2);
    std::_Exit(error_of(path) == expected ? 0 : 1);
  };
  EXPECT_EXIT(open_as_nobody(), testing::ExitedWithCode(0), "");
}

INSTANTIATE_TEST_SUITE_P(OpenAndRead, MappedFileTest,
                         testing::Values(&MappedFile::open, &MappedFile::read));

TEST(MappedFile, CopiesBytes) {
  std::string text(100, 'x');
  const MappedFile file = MappedFile::copy_of(std::as_bytes(std::span(text)));
  text[0] = 'y';
  EXPECT_EQ(text_of(file), std::string(100, 'x'));
  EXPECT_TRUE(MappedFile::copy_of({}).bytes().empty());
}

}  // namespace
}  // namespace kve::test
