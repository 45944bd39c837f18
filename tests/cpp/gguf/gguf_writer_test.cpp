#include "gguf/gguf_writer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/temporary_folder.h"
#include "gguf/gguf_builder.h"

namespace kve::test {
namespace {

std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(GgufWriter, WritesEveryTypeAsTheFormatSays) {
  GgufWriter writer;
  writer.set("general.architecture", "llama");
  writer.set("u8", uint8_t{200});
  writer.set("i8", int8_t{-100});
  writer.set("u16", uint16_t{60000});
  writer.set("i16", int16_t{-30000});
  writer.set("u32", uint32_t{4000000000u});
  writer.set("i32", int32_t{-2000000000});
  writer.set("f32", 1.5f);
  writer.set("boolean", true);
  writer.set("u64", uint64_t{18000000000000000000u});
  writer.set("i64", int64_t{-9000000000000000000});
  writer.set("f64", -0.1);
  writer.set("general.alignment", uint32_t{64});
  writer.set_array("tokenizer.ggml.tokens",
                   std::vector<std::string>{"<s>", "", "hello", "w\xc3\xb6rld"});
  writer.set_array("tokenizer.ggml.scores", std::vector<float>{0.0f, -1.0f, -2.5f, -3.0f});
  writer.set_array("tokenizer.ggml.token_type", std::vector<int32_t>{3, 1, 1, -1});
  const bool sliding[] = {true, false, true};
  writer.set_array("llama.sliding", std::span<const bool>(sliding));

  GgufBuilder expected = small_model();
  const auto source = GgufFile::from_bytes(expected.bytes);
  for (const TensorInfo& tensor : source->tensors()) {
    writer.add_tensor(tensor.name, tensor.type, tensor.shape, {tensor.data, tensor.bytes});
  }
  // The builder numbers the padding between tensors, the writer clears it.
  std::string want = text_of(expected.bytes);
  const size_t data = want.size() - 1408;
  for (size_t i = 1024 + 216; i < 1280; ++i) want[data + i] = 0;
  for (size_t i = 1280 + 34; i < 1344; ++i) want[data + i] = 0;
  EXPECT_EQ(text_of(writer.to_bytes()), want);
}

TEST(GgufWriter, CopyReproducesTheFile) {
  for (const uint32_t version : {2u, 3u}) {
    const auto first = GgufWriter::copy_of(GgufFile::from_bytes(small_model(version).bytes));
    const auto bytes = first.to_bytes();
    EXPECT_EQ(GgufFile::from_bytes(bytes)->version(), version);
    EXPECT_EQ(text_of(GgufWriter::copy_of(GgufFile::from_bytes(bytes)).to_bytes()), text_of(bytes));
  }
}

TEST(GgufWriter, CopyReproducesAFileOfTheReferencePackage) {
  const std::filesystem::path path = std::filesystem::path(KVE_TEST_FIXTURES) / "gguf/golden.gguf";
  const auto file = GgufFile::open(path);
  EXPECT_EQ(text_of(GgufWriter::copy_of(file).to_bytes()), file_text(path));
  EXPECT_EQ(file->get<int64_t>("golden.i64"), -1234567890123456789);
  EXPECT_EQ(file->get<double>("golden.f64"), 0.1);
  EXPECT_EQ(file->get<bool>("golden.boolean"), true);
  EXPECT_EQ(file->get<std::string>("golden.string"), "na\xc3\xafve \xf0\x9f\x99\x82");
  EXPECT_EQ(file->get<std::vector<std::string>>("golden.strings"),
            (std::vector<std::string>{"a", "", "bc"}));
  EXPECT_EQ(file->get<std::vector<int32_t>>("golden.integers"),
            (std::vector<int32_t>{-1, 0, 70000}));
  EXPECT_EQ(file->get<std::vector<float>>("golden.floats"), (std::vector<float>{0.5f, -1.25f}));
  EXPECT_EQ(file->get<std::vector<int64_t>>("golden.booleans"), (std::vector<int64_t>{1, 0}));
  const TensorInfo& matrix = file->tensor("matrix");
  EXPECT_EQ(matrix.type, WeightType::f32);
  EXPECT_EQ(matrix.shape, (std::vector<int64_t>{4, 3}));
  float values[12];
  ASSERT_EQ(matrix.bytes, sizeof(values));
  std::memcpy(values, matrix.data, sizeof(values));
  for (int i = 0; i < 12; ++i) EXPECT_EQ(values[i], static_cast<float>(i));
  const TensorInfo& quantized = file->tensor("quantized");
  EXPECT_EQ(quantized.type, WeightType::q8_0);
  EXPECT_EQ(quantized.shape, (std::vector<int64_t>{64, 2}));
  EXPECT_EQ(quantized.bytes, 136u);
}

TEST(GgufWriter, CopiesMergeSplits) {
  const TemporaryFolder folder;
  const auto write_part = [&](uint16_t number, const char* tensor) {
    GgufWriter writer;
    writer.set("split.no", number);
    writer.set("split.count", uint16_t{2});
    writer.set("split.tensors.count", int32_t{2});
    writer.set("general.name", "split");
    const std::vector<std::byte> data(32, static_cast<std::byte>(number));
    writer.add_tensor(tensor, WeightType::f32, {8}, data);
    const auto path = folder / (number == 0 ? "m-00001-of-00002.gguf" : "m-00002-of-00002.gguf");
    writer.write(path);
    return path;
  };
  const auto first = write_part(0, "a");
  write_part(1, "b");
  GgufWriter::copy_of(GgufFile::open(first)).write(folder / "merged.gguf");
  const auto merged = GgufFile::open(folder / "merged.gguf");
  EXPECT_EQ(merged->metadata().size(), 1u);
  EXPECT_EQ(merged->tensor("a").data[31], std::byte{0});
  EXPECT_EQ(merged->tensor("b").data[31], std::byte{1});
}

TEST(GgufWriter, ReplacesInPlaceAndErases) {
  GgufWriter writer;
  writer.set("a", 1);
  writer.set("b", 2);
  writer.set("c", 3);
  writer.set("a", "text");
  writer.erase("b");
  const auto file = GgufFile::from_bytes(writer.to_bytes());
  ASSERT_EQ(file->metadata().size(), 2u);
  EXPECT_EQ(file->metadata().begin()->key(), "a");
  EXPECT_EQ(file->get<std::string>("a"), "text");
  EXPECT_EQ(file->get<int>("c"), 3);
}

TEST(GgufWriter, ProducersFillTensorsOneAfterTheOther) {
  GgufWriter writer;
  const std::vector<std::byte> given(4, std::byte{5});
  writer.add_tensor("produced", WeightType::q8_0, {32, 2}, [](std::span<std::byte> out) {
    ASSERT_EQ(out.size(), 68u);
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(i);
  });
  writer.add_tensor("given", WeightType::f32, {1}, given);
  writer.add_tensor("cleared", WeightType::f32, {1}, [](std::span<std::byte>) {});
  const TemporaryFolder folder;
  writer.write(folder / "a.gguf");
  EXPECT_EQ(file_text(folder / "a.gguf"), text_of(writer.to_bytes()));
  const auto file = GgufFile::open(folder / "a.gguf");
  EXPECT_EQ(file->tensor("produced").data[67], std::byte{67});
  EXPECT_EQ(file->tensor("given").data[3], std::byte{5});
  EXPECT_EQ(file->tensor("cleared").data[0], std::byte{0});
}

TEST(GgufWriter, AFailedWriteLeavesTheOldFile) {
  const TemporaryFolder folder;
  const auto path = folder.write("a.gguf", "old");
  GgufWriter writer;
  writer.add_tensor("w", WeightType::f32, {1},
                    [](std::span<std::byte>) { throw ConfigError("no bytes"); });
  EXPECT_EQ(error_of([&] { writer.write(path); }), "no bytes");
  EXPECT_EQ(file_text(path), "old");
}

TEST(GgufWriter, RefusesWhatNoReaderWouldAccept) {
  GgufWriter writer;
  const std::vector<std::byte> bytes(32);
  const auto add = [&](std::string name, WeightType type, std::vector<int64_t> shape) {
    return error_of([&] { writer.add_tensor(std::move(name), type, std::move(shape), bytes); });
  };
  EXPECT_EQ(add("w", WeightType::f32, {8}), "no error");
  EXPECT_EQ(add("w", WeightType::f32, {8}), "tensor 'w' was added twice");
  EXPECT_EQ(add("", WeightType::f32, {8}),
            "tensor '': expected a name of 1 to 1024 bytes, found 0");
  EXPECT_EQ(add("x", WeightType::f32, {}), "tensor 'x': expected 1 to 4 dimensions, found 0");
  EXPECT_EQ(add("x", WeightType::f32, {8, -1}),
            "tensor 'x': expected sizes of at least 1, found -1");
  EXPECT_EQ(add("x", WeightType::f32, {7}), "tensor 'x': expected 28 bytes, found 32");
  EXPECT_EQ(add("x", WeightType::q8_0, {48}),
            "tensor 'x': expected rows that are a multiple of 32 for type Q8_0, found 48");
  EXPECT_EQ(add("x", WeightType::f32, {int64_t{1} << 40, int64_t{1} << 40}),
            "tensor 'x': the product of its sizes is too large");
  EXPECT_EQ(error_of([&] { writer.set("", 1); }),
            "metadata key: expected 1 to 65535 bytes, found 0");
  EXPECT_EQ(error_of([&] { writer.set("general.alignment", uint32_t{12}); }),
            "metadata 'general.alignment': expected u32, a power of two from 8 to 65536");
  EXPECT_EQ(error_of([&] { writer.set("general.alignment", 32); }),
            "metadata 'general.alignment': expected u32, a power of two from 8 to 65536");
  EXPECT_EQ(GgufFile::from_bytes(writer.to_bytes())->tensors().size(), 1u);
}

}  // namespace
}  // namespace kve::test
