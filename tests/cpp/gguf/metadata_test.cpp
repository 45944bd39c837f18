#include "gguf/metadata.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "gguf/gguf_builder.h"
#include "gguf/gguf_file.h"

namespace kve::test {
namespace {

std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const FormatError& error) {
    return error.what();
  }
  return "no error";
}

class MetadataTest : public testing::Test {
 protected:
  std::shared_ptr<const GgufFile> file_ = GgufFile::from_bytes(small_model().bytes);
  const Metadata& metadata_ = file_->metadata();
};

TEST_F(MetadataTest, EveryScalarTypeIsReadExactly) {
  EXPECT_EQ(metadata_.get<uint8_t>("u8"), 200);
  EXPECT_EQ(metadata_.get<int8_t>("i8"), -100);
  EXPECT_EQ(metadata_.get<uint16_t>("u16"), 60000);
  EXPECT_EQ(metadata_.get<int16_t>("i16"), -30000);
  EXPECT_EQ(metadata_.get<uint32_t>("u32"), 4000000000u);
  EXPECT_EQ(metadata_.get<int32_t>("i32"), -2000000000);
  EXPECT_EQ(metadata_.get<uint64_t>("u64"), 18000000000000000000u);
  EXPECT_EQ(metadata_.get<int64_t>("i64"), -9000000000000000000);
  EXPECT_EQ(metadata_.get<float>("f32"), 1.5f);
  EXPECT_EQ(metadata_.get<double>("f64"), -0.1);
  EXPECT_EQ(metadata_.get<bool>("boolean"), true);
  EXPECT_EQ(metadata_.get<std::string>("general.architecture"), "llama");
  EXPECT_EQ(metadata_.get<std::string_view>("general.architecture"), "llama");
}

TEST_F(MetadataTest, ArraysAreRead) {
  EXPECT_EQ(metadata_.get<std::vector<std::string>>("tokenizer.ggml.tokens"),
            (std::vector<std::string>{"<s>", "", "hello", "w\xc3\xb6rld"}));
  EXPECT_EQ(metadata_.get<std::vector<float>>("tokenizer.ggml.scores"),
            (std::vector<float>{0.0f, -1.0f, -2.5f, -3.0f}));
  EXPECT_EQ(metadata_.get<std::vector<int32_t>>("tokenizer.ggml.token_type"),
            (std::vector<int32_t>{3, 1, 1, -1}));
  EXPECT_EQ(metadata_.get<std::vector<int64_t>>("llama.sliding"), (std::vector<int64_t>{1, 0, 1}));
}

TEST_F(MetadataTest, NumbersConvertWhereTheValueFits) {
  EXPECT_EQ(metadata_.get<int64_t>("u8"), 200);
  EXPECT_EQ(metadata_.get<uint64_t>("u32"), 4000000000u);
  EXPECT_EQ(metadata_.get<int>("i16"), -30000);
  EXPECT_EQ(metadata_.get<double>("u16"), 60000.0);
  EXPECT_EQ(metadata_.get<float>("f64"), -0.1f);
  EXPECT_EQ(metadata_.get<std::vector<float>>("tokenizer.ggml.token_type"),
            (std::vector<float>{3, 1, 1, -1}));
}

TEST_F(MetadataTest, WhatDoesNotFitIsAnErrorThatNamesTheKey) {
  EXPECT_EQ(error_of([&] { metadata_.get<int8_t>("u8"); }),
            "metadata 'u8': expected i8, found a value outside its range");
  EXPECT_EQ(error_of([&] { metadata_.get<uint32_t>("i8"); }),
            "metadata 'i8': expected u32, found a value outside its range");
  EXPECT_EQ(error_of([&] { metadata_.get<uint64_t>("i64"); }),
            "metadata 'i64': expected u64, found a value outside its range");
  EXPECT_EQ(error_of([&] { metadata_.get<int64_t>("u64"); }),
            "metadata 'u64': expected i64, found a value outside its range");
  EXPECT_EQ(error_of([&] { metadata_.get<int>("u32"); }),
            "metadata 'u32': expected i32, found a value outside its range");
}

TEST_F(MetadataTest, AWrongTypeIsAnErrorThatNamesBoth) {
  EXPECT_EQ(error_of([&] { metadata_.get<int>("f32"); }),
            "metadata 'f32': expected i32, found f32");
  EXPECT_EQ(error_of([&] { metadata_.get<int>("boolean"); }),
            "metadata 'boolean': expected i32, found boolean");
  EXPECT_EQ(error_of([&] { metadata_.get<bool>("u8"); }),
            "metadata 'u8': expected boolean, found u8");
  EXPECT_EQ(error_of([&] { metadata_.get<double>("boolean"); }),
            "metadata 'boolean': expected a number, found boolean");
  EXPECT_EQ(error_of([&] { metadata_.get<float>("general.architecture"); }),
            "metadata 'general.architecture': expected a number, found string");
  EXPECT_EQ(error_of([&] { metadata_.get<std::string>("u32"); }),
            "metadata 'u32': expected string, found u32");
  EXPECT_EQ(error_of([&] { metadata_.get<int>("tokenizer.ggml.token_type"); }),
            "metadata 'tokenizer.ggml.token_type': expected i32, found array of 4 i32");
  EXPECT_EQ(error_of([&] { metadata_.get<uint64_t>("tokenizer.ggml.token_type"); }),
            "metadata 'tokenizer.ggml.token_type': expected u64, found array of 4 i32");
  EXPECT_EQ(error_of([&] { metadata_.get<std::string>("tokenizer.ggml.tokens"); }),
            "metadata 'tokenizer.ggml.tokens': expected string, found array of 4 string");
  EXPECT_EQ(error_of([&] { metadata_.get<std::vector<float>>("tokenizer.ggml.tokens"); }),
            "metadata 'tokenizer.ggml.tokens': expected array of f32, found array of 4 string");
  EXPECT_EQ(error_of([&] { metadata_.get<std::vector<int64_t>>("tokenizer.ggml.scores"); }),
            "metadata 'tokenizer.ggml.scores': expected array of i64, found array of 4 f32");
  EXPECT_EQ(error_of([&] { metadata_.get<std::vector<std::string>>("general.architecture"); }),
            "metadata 'general.architecture': expected array of string, found string");
  EXPECT_EQ(error_of([&] { metadata_.get<std::vector<int64_t>>("u32"); }),
            "metadata 'u32': expected array of i64, found u32");
}

TEST_F(MetadataTest, AMissingKeyIsAnErrorOrTheFallback) {
  EXPECT_EQ(error_of([&] { metadata_.get<int>("llama.block_count"); }),
            "metadata 'llama.block_count' is missing from the file");
  EXPECT_EQ(metadata_.get_or("llama.block_count", 7), 7);
  EXPECT_EQ(metadata_.get_or("u8", 7), 200);
  EXPECT_EQ(metadata_.get_or<std::string>("general.name", "unnamed"), "unnamed");
  // A fallback is for absent keys, not for wrong ones.
  EXPECT_EQ(error_of([&] { metadata_.get_or("general.architecture", 7); }),
            "metadata 'general.architecture': expected i32, found string");
  EXPECT_EQ(metadata_.find("general.name"), nullptr);
  EXPECT_FALSE(metadata_.has("general.name"));
  EXPECT_TRUE(metadata_.has("u8"));
}

TEST_F(MetadataTest, IteratesInTheOrderOfTheFile) {
  std::vector<std::string> keys;
  for (const MetaValue& value : metadata_) keys.emplace_back(value.key());
  EXPECT_EQ(keys, (std::vector<std::string>{
                      "general.architecture", "u8", "i8", "u16", "i16", "u32", "i32", "f32",
                      "boolean", "u64", "i64", "f64", "general.alignment", "tokenizer.ggml.tokens",
                      "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "llama.sliding"}));
  EXPECT_EQ(metadata_.size(), keys.size());
}

TEST(Metadata, IntegersOutOfTheRangeOfAnArrayAreRefused) {
  GgufBuilder b;
  b.header(0, 2);
  b.numbers<uint64_t>("large", 10, {1, uint64_t{1} << 63});
  b.numbers<int64_t>("wide", 11, {1, int64_t{1} << 31});
  const auto file = GgufFile::from_bytes(b.bytes);
  EXPECT_EQ(error_of([&] { file->get<std::vector<int64_t>>("large"); }),
            "metadata 'large': expected array of i64, found an element outside its range");
  EXPECT_EQ(error_of([&] { file->get<std::vector<int32_t>>("wide"); }),
            "metadata 'wide': expected array of i32, found an element outside its range");
  EXPECT_EQ(file->get<std::vector<int64_t>>("wide")[1], int64_t{1} << 31);
}

TEST(Metadata, StringsAreViewsIntoTheFile) {
  const auto file = GgufFile::from_bytes(small_model().bytes);
  const MetaValue* value = file->metadata().find("tokenizer.ggml.tokens");
  const auto first = value->strings();
  const auto second = value->strings();
  EXPECT_EQ(first[2].data(), second[2].data());
}

}  // namespace
}  // namespace kve::test
