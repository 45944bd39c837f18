#include "base/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "base/temporary_folder.h"

namespace kve::test {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

size_t entries(const TemporaryFolder& folder) {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    ++count;
  }
  return count;
}

TEST(AtomicFile, ReplacesTheFileOnCommitOnly) {
  const TemporaryFolder folder;
  const auto path = folder.write("model", "old");
  {
    AtomicFile file(path);
    file.write(bytes_of("new "));
    file.write({});
    file.write(bytes_of(std::string(1 << 20, 'x')));
    EXPECT_EQ(file_text(path), "old");
    file.commit();
  }
  EXPECT_EQ(file_text(path), "new " + std::string(1 << 20, 'x'));
  EXPECT_EQ(entries(folder), 1u);
}

TEST(AtomicFile, LeavesNothingBehindWhenItIsNotCommitted) {
  const TemporaryFolder folder;
  const auto path = folder.write("model", "old");
  {
    AtomicFile file(path);
    file.write(bytes_of("half"));
  }
  EXPECT_EQ(file_text(path), "old");
  EXPECT_EQ(entries(folder), 1u);
}

TEST(AtomicFile, TwoWritersOfOneNameDoNotMix) {
  const TemporaryFolder folder;
  AtomicFile first(folder / "model");
  AtomicFile second(folder / "model");
  first.write(bytes_of("first"));
  second.write(bytes_of("second"));
  second.commit();
  first.commit();
  EXPECT_EQ(file_text(folder / "model"), "first");
  EXPECT_EQ(entries(folder), 1u);
}

TEST(AtomicFile, SaysWhyItCannotWrite) {
  const TemporaryFolder folder;
  const auto missing = folder / "missing" / "model";
  try {
    AtomicFile file(missing);
    FAIL() << "expected an IoError";
  } catch (const IoError& error) {
    EXPECT_EQ(std::string(error.what()),
              missing.string() + ": cannot create the file: No such file or directory");
  }
  std::filesystem::create_directory(folder / "folder");
  folder.write("folder/content", "x");
  AtomicFile file(folder / "folder");
  EXPECT_THROW(file.commit(), IoError);
  EXPECT_EQ(entries(folder), 1u);
}

// A limit on the size of files stands for a full disk; it is set in a child process.
TEST(AtomicFile, ReportsAFailedWriteAndCleansUp) {
  const TemporaryFolder folder;
  const auto write_too_much = [&] {
    struct rlimit limit{};
    limit.rlim_cur = limit.rlim_max = 1000;
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) std::_Exit(3);
    std::signal(SIGXFSZ, SIG_IGN);
    try {
      AtomicFile file(folder / "model");
      file.write(bytes_of(std::string(1 << 20, 'x')));
      file.commit();
    } catch (const IoError&) {
      std::_Exit(entries(folder) == 0 ? 0 : 1);
    }
    std::_Exit(2);
  };
  EXPECT_EXIT(write_too_much(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace kve::test
