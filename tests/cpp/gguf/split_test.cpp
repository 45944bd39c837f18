#include "gguf/split.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/temporary_folder.h"
#include "gguf/gguf_builder.h"
#include "gguf/gguf_file.h"

namespace kve::test {
namespace {

struct Part {
  uint16_t number;
  uint16_t count = 3;
  int32_t n_tensors = 4;
  std::string architecture = "";
  std::vector<std::string> tensors = {};
};

std::vector<std::byte> part_bytes(const Part& part) {
  GgufBuilder b;
  const bool named = !part.architecture.empty();
  b.header(part.tensors.size(), named ? 4 : 3);
  if (named) b.text("general.architecture", part.architecture);
  b.scalar("split.no", 2, part.number);
  b.scalar("split.count", 2, part.count);
  b.scalar("split.tensors.count", 5, part.n_tensors);
  for (size_t i = 0; i < part.tensors.size(); ++i) b.tensor(part.tensors[i], {8}, 0, i * 32);
  return b.data(part.tensors.size() * 32).bytes;
}

class SplitTest : public testing::Test {
 protected:
  TemporaryFolder folder_;
  std::filesystem::path first_ = folder_ / "m-00001-of-00003.gguf";
  std::filesystem::path third_ = folder_ / "m-00003-of-00003.gguf";

  void SetUp() override {
    write({.number = 0, .architecture = "llama", .tensors = {"a", "b"}});
    write({.number = 1, .tensors = {"c"}});
    write({.number = 2, .tensors = {"d"}});
  }
  void write(const Part& part) { write(part, part.number); }
  void write(const Part& part, uint32_t number) {
    folder_.write("m" + gguf::split_suffix(number, 3), part_bytes(part));
  }
  std::string error_of(const std::filesystem::path& path) {
    try {
      GgufFile::open(path);
    } catch (const Error& error) {
      const std::string text = error.what();
      const std::string prefix = folder_.path().string() + "/";
      EXPECT_TRUE(text.starts_with(prefix)) << text;
      return text.substr(prefix.size());
    }
    return "no error";
  }
};

TEST_F(SplitTest, PartsOpenAsOneFile) {
  const auto file = GgufFile::open(first_);
  std::vector<std::string> names;
  for (const TensorInfo& tensor : file->tensors()) {
    names.push_back(tensor.name);
    EXPECT_EQ(file->find(tensor.name), &tensor);
    EXPECT_EQ(tensor.data[0], tensor.name == "b" ? std::byte{32} : std::byte{0});
  }
  EXPECT_EQ(names, (std::vector<std::string>{"a", "b", "c", "d"}));
  EXPECT_EQ(file->get<std::string>("general.architecture"), "llama");
  EXPECT_EQ(file->parts(), 3u);
  EXPECT_EQ(file->file_bytes(), std::filesystem::file_size(first_) +
                                    std::filesystem::file_size(folder_ / "m-00002-of-00003.gguf") +
                                    std::filesystem::file_size(third_));
}

TEST_F(SplitTest, SaysWhichPartToOpen) {
  EXPECT_EQ(error_of(third_),
            "m-00003-of-00003.gguf: this is part 3 of 3 of a split model: open the part whose name "
            "ends in -00001-of-00003.gguf");
}

TEST_F(SplitTest, SaysWhichPartIsMissing) {
  std::filesystem::remove(third_);
  EXPECT_EQ(error_of(first_),
            "m-00001-of-00003.gguf: part 3 of 3 is missing: expected the file " + third_.string());
}

TEST_F(SplitTest, RefusesANameFromWhichTheOthersCannotBeFound) {
  std::filesystem::rename(first_, folder_ / "renamed.gguf");
  EXPECT_EQ(error_of(folder_ / "renamed.gguf"),
            "renamed.gguf: part 1 of a split model: expected a name that ends in "
            "-00001-of-00003.gguf, by which the others are found");
}

TEST_F(SplitTest, RefusesPartsThatDoNotBelongTogether) {
  write({.number = 1, .tensors = {"d"}}, 2);
  EXPECT_EQ(error_of(first_),
            "m-00003-of-00003.gguf: expected part 3 of 3 of a split model, found part 2 of 3");
  write({.number = 2, .count = 4, .tensors = {"d"}}, 2);
  EXPECT_EQ(error_of(first_),
            "m-00003-of-00003.gguf: expected part 3 of 3 of a split model, found part 3 of 4");
  write({.number = 0, .count = 0, .tensors = {"d"}}, 2);
  EXPECT_EQ(error_of(first_),
            "m-00003-of-00003.gguf: expected part 3 of 3 of a split model, found part 1 of 1");
  write({.number = 2, .n_tensors = 5, .tensors = {"d"}});
  EXPECT_EQ(error_of(first_),
            "m-00003-of-00003.gguf: expected a part of a model of 4 tensors, found one of 5");
  write({.number = 2, .architecture = "gemma3", .tensors = {"d"}});
  EXPECT_EQ(error_of(first_),
            "m-00003-of-00003.gguf: expected a part of a model of architecture 'llama', found "
            "'gemma3'");
}

TEST_F(SplitTest, ChecksTheTensorsOfAllParts) {
  write({.number = 2, .tensors = {"d", "e"}});
  EXPECT_EQ(error_of(first_), "m-00001-of-00003.gguf: expected 4 tensors in 3 parts, found 5");
  write({.number = 2, .tensors = {"a"}});
  EXPECT_EQ(error_of(first_), "m-00001-of-00003.gguf: tensor 'a' appears twice");
}

TEST_F(SplitTest, RefusesPartNumbersThatMakeNoSense) {
  write({.number = 3}, 0);
  EXPECT_EQ(error_of(first_),
            "m-00001-of-00003.gguf: metadata 'split.no': expected less than 3, found 3");
  write({.number = 0, .n_tensors = -1}, 0);
  EXPECT_EQ(error_of(first_),
            "m-00001-of-00003.gguf: metadata 'split.tensors.count': expected u32, found a value "
            "outside its range");
}

TEST_F(SplitTest, AMergedModelIsNotSplit) {
  const auto path = folder_.write(
      "merged.gguf", part_bytes({.number = 0, .count = 0, .n_tensors = 1, .tensors = {"a"}}));
  EXPECT_EQ(GgufFile::open(path)->parts(), 1u);
}

TEST_F(SplitTest, BytesInMemoryCannotBeAPart) {
  EXPECT_THROW(GgufFile::from_bytes(part_bytes({.number = 0, .tensors = {"a"}})), FormatError);
}

}  // namespace
}  // namespace kve::test
