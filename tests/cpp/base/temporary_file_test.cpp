#include "base/temporary_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/temporary_folder.h"

namespace kve {
namespace {

std::vector<std::byte> bytes_of(int n, int seed) {
  std::vector<std::byte> out;
  for (int i = 0; i < n; ++i) out.push_back(static_cast<std::byte>((i * 7 + seed) % 251));
  return out;
}

TEST(TemporaryFile, GivesBackWhatWasWritten) {
  const test::TemporaryFolder folder;
  TemporaryFile file(folder.path());
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // it has no name
  const std::vector<std::byte> first = bytes_of(100'000, 1);
  const std::vector<std::byte> second = bytes_of(1000, 2);
  file.write(50'000, first);
  file.write(60'000, second);
  std::vector<std::byte> found(100'000);
  file.read(50'000, found);
  std::vector<std::byte> expected = first;
  std::ranges::copy(second, expected.begin() + 10'000);
  EXPECT_EQ(found, expected);
}

TEST(TemporaryFile, RefusesWithOneSentence) {
  const test::TemporaryFolder folder;
  const auto refusal = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const IoError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  const std::string missing = (folder / "missing").string();
  EXPECT_EQ(refusal([&] { TemporaryFile file(missing); }),
            "temporary file in " + missing + ": cannot create it: No such file or directory");
  TemporaryFile file(folder.path());
  file.write(0, bytes_of(10, 1));
  std::vector<std::byte> more(12);
  EXPECT_EQ(refusal([&] { file.read(5, more); }),
            "temporary file in " + folder.path().string() +
                ": expected 7 more bytes at 10, found its end");
}

}  // namespace
}  // namespace kve
