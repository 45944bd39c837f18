#include "gguf/gguf_file.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/allocation_watch.h"
#include "base/error.h"
#include "base/temporary_folder.h"
#include "gguf/gguf_builder.h"

namespace kve::test {
namespace {

// The message of the expected kind of error, without the "memory: " in front.
template <class Expected>
std::string error_of(std::span<const std::byte> bytes) {
  try {
    GgufFile::from_bytes(bytes);
  } catch (const Expected& error) {
    const std::string text = error.what();
    EXPECT_TRUE(text.starts_with("memory: ")) << text;
    return text.substr(std::min<size_t>(8, text.size()));
  } catch (const Error& error) {
    return std::string("another kind of error: ") + error.what();
  }
  return "no error";
}
std::string format_error(std::string_view text) {
  return error_of<FormatError>(std::as_bytes(std::span(text)));
}
std::string format_error(const GgufBuilder& b) { return error_of<FormatError>(b.bytes); }

TEST(GgufFile, ReadsTensors) {
  const auto file = GgufFile::from_bytes(small_model().bytes);
  ASSERT_EQ(file->tensors().size(), 4u);
  const TensorInfo& first = file->tensors()[0];
  EXPECT_EQ(first.name, "token_embd.weight");
  EXPECT_EQ(first.type, WeightType::f32);
  EXPECT_EQ(first.shape, (std::vector<int64_t>{64, 4}));
  EXPECT_EQ(first.bytes, 1024u);
  EXPECT_EQ(first.row_length(), 64);
  EXPECT_EQ(first.rows(), 4);
  EXPECT_EQ(first.elements(), 256);
  EXPECT_EQ(first.shape_string(), "[64, 4]");
  const TensorInfo& blocks = file->tensor("blk.0.ffn_up.weight");
  EXPECT_EQ(blocks.type, WeightType::q4_0);
  EXPECT_EQ(blocks.bytes, 216u);
  EXPECT_EQ(blocks.rows(), 6);
  EXPECT_EQ(file->tensor("blk.0.attn_q.weight").shape, (std::vector<int64_t>{32, 1, 1, 1}));
  // The builder numbers the bytes of the data section.
  EXPECT_EQ(blocks.data - first.data, 1024);
  EXPECT_EQ(first.data[7], std::byte{7});
  EXPECT_EQ(file->tensor("output_norm.weight").data[0], static_cast<std::byte>(1344 & 255));
  for (const TensorInfo& tensor : file->tensors()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data) % 64, 0u) << tensor.name;
  }
  EXPECT_EQ(file->find("nothing"), nullptr);
  EXPECT_EQ(file->alignment(), 64u);
  EXPECT_EQ(file->version(), 3u);
  EXPECT_EQ(file->parts(), 1u);
  EXPECT_EQ(file->path(), "memory");
}

TEST(GgufFile, OpensAFileLikeItsBytes) {
  const TemporaryFolder folder;
  const std::vector<std::byte> bytes = small_model(2).bytes;
  const auto path = folder.write("model.gguf", bytes);
  const auto file = GgufFile::open(path);
  EXPECT_EQ(file->version(), 2u);
  EXPECT_EQ(file->path(), path);
  EXPECT_EQ(file->file_bytes(), bytes.size());
  EXPECT_EQ(file->tensor("token_embd.weight").data[9], std::byte{9});
  try {
    file->tensor("output.weight");
    FAIL() << "expected a FormatError";
  } catch (const FormatError& error) {
    EXPECT_EQ(std::string(error.what()),
              path.string() + ": tensor 'output.weight' is missing from the file");
  }
}

TEST(GgufFile, VocabularyOnlyFilesOpen) {
  GgufBuilder b;
  b.header(0, 1).strings("tokenizer.ggml.tokens", {"a", "b"});
  const auto file = GgufFile::from_bytes(b.bytes);
  EXPECT_TRUE(file->tensors().empty());
  EXPECT_EQ(file->alignment(), 32u);
  EXPECT_EQ(file->get<std::vector<std::string>>("tokenizer.ggml.tokens").size(), 2u);
  EXPECT_NO_THROW(GgufFile::from_bytes(GgufBuilder().header(0, 0).bytes));
}

TEST(GgufFile, SaysWhyAPathCannotBeOpened) {
  const TemporaryFolder folder;
  EXPECT_THROW(GgufFile::open(folder / "missing.gguf"), IoError);
  EXPECT_THROW(GgufFile::open(folder.path()), IoError);
  EXPECT_THROW(GgufFile::open(folder.write("empty.gguf", "")), FormatError);
}

TEST(GgufFile, SaysWhatAForeignFileStartsWith) {
  EXPECT_EQ(format_error(""), "expected a GGUF file, found an empty file");
  EXPECT_EQ(format_error("G"), "expected a GGUF file, found one that starts with 'G'");
  EXPECT_EQ(format_error("tjgg\1\0\0\0"),
            "expected a GGUF file, found one that starts with 'tjgg'");
  EXPECT_EQ(format_error(std::string_view("PK\3\4....", 8)),
            "expected a GGUF file, found one that starts with 'PK\\x03\\x04'");
}

TEST(GgufFile, RefusesOtherVersions) {
  const auto version = [](uint32_t number) {
    return error_of<UnsupportedError>(GgufBuilder().header(0, 0, number).bytes);
  };
  EXPECT_EQ(version(1), "header: expected GGUF version 2 or 3, found version 1");
  EXPECT_EQ(version(4), "header: expected GGUF version 2 or 3, found version 4");
  EXPECT_EQ(version(0), "header: expected GGUF version 2 or 3, found version 0");
  EXPECT_EQ(version(0x03000000), "header: expected a little-endian file, found a big-endian one");
}

TEST(GgufFile, RefusesCountsThatTheFileCannotHold) {
  const std::string filler(1000, 'x');
  EXPECT_EQ(format_error(GgufBuilder().header(0, 100).raw(filler)),
            "header: metadata count: expected at most 71, found 100");
  EXPECT_EQ(format_error(GgufBuilder().header(100, 0).raw(filler)),
            "header: tensor count: expected at most 30, found 100");
  EXPECT_EQ(format_error(GgufBuilder().header(UINT64_MAX, 0)),
            "header: tensor count: expected at most 0, found 18446744073709551615");
  GgufBuilder b;
  b.header(0, 1).array("k", 10, UINT64_MAX / 8 + 2).raw(filler);  // times 8 is 8 modulo 2^64
  EXPECT_EQ(format_error(b),
            "metadata 'k': array length: expected at most 125, found 2305843009213693953");
}

TEST(GgufFile, LimitsCountsEvenWhenTheFileIsLarge) {
  const std::string filler(size_t{16} << 20, '\0');
  EXPECT_EQ(format_error(GgufBuilder().header(0, 100000).raw(filler)),
            "header: metadata count: expected at most 65536, found 100000");
  EXPECT_EQ(format_error(GgufBuilder().header(300000, 0).raw(filler)),
            "header: tensor count: expected at most 262144, found 300000");
  GgufBuilder b;
  b.header(0, 1).array("k", 0, 9000000).raw(filler);
  EXPECT_EQ(format_error(b), "metadata 'k': array length: expected at most 8388608, found 9000000");
}

TEST(GgufFile, RefusesBadKeys) {
  EXPECT_EQ(format_error(GgufBuilder().header(0, 1).scalar<uint32_t>("", 4, 1)),
            "first metadata key: expected a key of 1 to 65535 bytes, found 0");
  EXPECT_EQ(format_error(GgufBuilder().header(0, 2).scalar<uint32_t>("a", 4, 1).scalar<uint32_t>(
                std::string(70000, 'k'), 4, 1)),
            "metadata key after 'a': expected a key of 1 to 65535 bytes, found 70000");
  EXPECT_EQ(format_error(
                GgufBuilder().header(0, 2).scalar<uint32_t>("a", 4, 1).scalar<uint8_t>("a", 0, 1)),
            "metadata 'a': the key appears twice");
  GgufBuilder cut;
  cut.header(0, 1).number("length", uint64_t{1} << 40).raw("general.architecture");
  EXPECT_EQ(format_error(cut),
            "first metadata key: key is cut short: expected 1099511627776 bytes, found 20 before "
            "the end of the file");
  // Nothing from a file can break the line of a message.
  EXPECT_EQ(format_error(GgufBuilder().header(0, 1).scalar<uint32_t>("a\n\xff'", 99, 1)),
            "metadata 'a\\n\\xff\\'': value type: expected a number below 13, found 99");
}

TEST(GgufFile, RefusesBadValues) {
  EXPECT_EQ(format_error(GgufBuilder().header(0, 1).scalar<uint8_t>("k", 7, 2)),
            "metadata 'k': expected a boolean of 0 or 1, found 2");
  EXPECT_EQ(format_error(GgufBuilder().header(0, 1).numbers<uint8_t>("k", 7, {0, 1, 255})),
            "metadata 'k': expected a boolean of 0 or 1, found 255");
  EXPECT_EQ(format_error(GgufBuilder().header(0, 1).array("k", 13, 0)),
            "metadata 'k': array element type: expected a number below 13, found 13");
  EXPECT_EQ(format_error(GgufBuilder().header(0, 1).scalar<uint32_t>("key", 10, 1)),
            "metadata 'key': value is cut short: expected 8 bytes, found 4 before the end of the "
            "file");
  GgufBuilder b;
  b.header(0, 1).array("k", 8, 2).string("0", "abc").number("1.length", uint64_t{4}).raw("abc");
  EXPECT_EQ(format_error(b),
            "metadata 'k': string in array is cut short: expected 4 bytes, found 3 before the end "
            "of the file");
}

TEST(GgufFile, RefusesArraysOfArrays) {
  GgufBuilder b;
  b.header(0, 1).array("k", 9, 1).number("type", uint32_t{0}).number("count", uint64_t{0});
  EXPECT_EQ(error_of<UnsupportedError>(b.bytes),
            "metadata 'k': arrays of arrays are not supported");
}

TEST(GgufFile, ChecksTheAlignment) {
  const auto aligned = [](uint32_t alignment) {
    return format_error(GgufBuilder().header(0, 1).scalar("general.alignment", 4, alignment));
  };
  for (const uint32_t good : {8u, 16u, 32u, 4096u, 65536u}) EXPECT_EQ(aligned(good), "no error");
  for (const uint32_t bad : {0u, 1u, 4u, 12u, 33u, 131072u, 0x80000000u, 0xffffffffu}) {
    EXPECT_EQ(aligned(bad),
              "metadata 'general.alignment': expected a power of two from 8 to 65536, found " +
                  std::to_string(bad));
  }
  EXPECT_EQ(format_error(GgufBuilder().header(0, 1).text("general.alignment", "32")),
            "metadata 'general.alignment': expected u32, found string");
}

// One tensor with room for `n_bytes` of data.
GgufBuilder one_tensor(const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset = 0,
                       size_t n_bytes = 4096) {
  GgufBuilder b;
  b.header(1, 0).tensor("w", shape, type, offset).data(n_bytes);
  return b;
}

TEST(GgufFile, ChecksShapes) {
  EXPECT_EQ(format_error(one_tensor({}, 0)), "tensor 'w': expected 1 to 4 dimensions, found 0");
  EXPECT_EQ(format_error(one_tensor({1, 1, 1, 1, 1}, 0)),
            "tensor 'w': expected 1 to 4 dimensions, found 5");
  EXPECT_EQ(format_error(one_tensor({8, 0}, 0)),
            "tensor 'w': expected sizes from 1 to 9223372036854775807, found 0");
  EXPECT_EQ(format_error(one_tensor({8, UINT64_MAX}, 0)),
            "tensor 'w': expected sizes from 1 to 9223372036854775807, found "
            "18446744073709551615");
  // 2^32 * 2^32 is 0, and 2^62 * 4 bytes is 0, modulo 2^64.
  EXPECT_EQ(format_error(one_tensor({uint64_t{1} << 32, uint64_t{1} << 32}, 0)),
            "tensor 'w': the product of [4294967296, 4294967296] is too large");
  EXPECT_EQ(format_error(one_tensor({uint64_t{1} << 62}, 0)),
            "tensor 'w': the product of [4611686018427387904] is too large");
  EXPECT_EQ(format_error(one_tensor({33, 32}, 2)),
            "tensor 'w': expected rows that are a multiple of 32 for type Q4_0, found 33");
  EXPECT_EQ(format_error(one_tensor({128, 2}, 12)),
            "tensor 'w': expected rows that are a multiple of 256 for type Q4_K, found 128");
}

TEST(GgufFile, RefusesUnknownTensorTypes) {
  for (const uint32_t type : {4u, 5u, 9u, 31u, 36u, 1000u, 0xffffffffu}) {
    EXPECT_EQ(error_of<UnsupportedError>(one_tensor({256}, type).bytes),
              "tensor 'w': type number " + std::to_string(type) + " is not supported");
  }
}

TEST(GgufFile, AcceptsEveryWeightType) {
  for (const WeightFormat& format : weight_formats()) {
    const auto row = static_cast<uint64_t>(format.block_values);
    const auto file = GgufFile::from_bytes(
        one_tensor({row, 2}, static_cast<uint32_t>(format.type)).bytes, format.name);
    EXPECT_EQ(file->tensor("w").bytes, static_cast<size_t>(format.block_bytes) * 2) << format.name;
  }
}

TEST(GgufFile, ChecksOffsets) {
  EXPECT_EQ(format_error(one_tensor({8}, 0, 4)),
            "tensor 'w': expected an offset that is a multiple of 32, found 4");
  EXPECT_EQ(format_error(one_tensor({8}, 0, 4096 - 32)), "no error");
  // The header is 24 + 8+1+4+8+4+8 = 57 bytes, so the data starts at 64.
  EXPECT_EQ(format_error(one_tensor({8}, 0, 4096)),
            "tensor 'w': the file is cut short or the offset wrong: expected at least 4192 bytes, "
            "found 4160");
  EXPECT_EQ(format_error(one_tensor({8}, 0, UINT64_MAX - 31)),
            "tensor 'w': the file is cut short or the offset wrong: expected at least "
            "18446744073709551615 bytes, found 4160");
}

TEST(GgufFile, SaysHowMuchOfACutFileIsMissing) {
  GgufBuilder b = small_model();
  const size_t whole = b.bytes.size();
  b.bytes.erase(b.bytes.end() - 1200, b.bytes.end());
  EXPECT_EQ(format_error(b),
            "tensor 'output_norm.weight': the file is cut short or the offset wrong: expected at "
            "least " +
                std::to_string(whole) + " bytes, found " + std::to_string(whole - 1200));
}

TEST(GgufFile, RefusesRepeatedAndBadTensorNames) {
  GgufBuilder b;
  b.header(2, 0).tensor("w", {8}, 0, 0).tensor("w", {8}, 0, 32).data(64);
  EXPECT_EQ(format_error(b), "tensor 'w' appears twice");
  GgufBuilder empty;
  empty.header(2, 0).tensor("w", {8}, 0, 0).tensor("", {8}, 0, 32).data(64);
  EXPECT_EQ(format_error(empty), "tensor after 'w': expected a name of 1 to 1024 bytes, found 0");
  GgufBuilder wide;
  wide.header(1, 0).tensor(std::string(2000, 'w'), {8}, 0, 0).data(64);
  EXPECT_EQ(format_error(wide), "first tensor: expected a name of 1 to 1024 bytes, found 2000");
}

TEST(GgufFile, AVocabularyIsNotCopied) {
  GgufBuilder b;
  b.header(0, 1).array("tokenizer.ggml.tokens", 8, 100000);
  for (int i = 0; i < 100000; ++i) b.raw(std::string_view("\5\0\0\0\0\0\0\0token", 13));
  const TemporaryFolder folder;
  const auto path = folder.write("vocabulary.gguf", b.bytes);
  const AllocationWatch watch;
  const auto file = GgufFile::open(path);
  EXPECT_LT(watch.seen().bytes, 10000u);
  EXPECT_EQ(file->metadata().find("tokenizer.ggml.tokens")->strings()[99999], "token");
}

}  // namespace
}  // namespace kve::test
