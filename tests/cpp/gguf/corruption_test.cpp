// Damages every field of a small valid file in every way that has ever broken a parser: wild
// counts and lengths, overflowing products, offsets past the end, truncation, nesting, repetition,
// and random bytes. A damaged file must open (the change was harmless) or be refused with one
// sentence, after allocating next to nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/allocation_watch.h"
#include "base/error.h"
#include "base/printable.h"
#include "gguf/gguf_builder.h"
#include "gguf/gguf_file.h"
#include "gguf/read_everything.h"

namespace kve::test {
namespace {

using Bytes = std::vector<std::byte>;

struct Corruption {
  std::string name;
  Bytes bytes;
};

void put(Bytes& bytes, size_t offset, size_t size, uint64_t value) {
  std::memcpy(bytes.data() + offset, &value, size);
}

uint64_t get(const Bytes& bytes, size_t offset, size_t size) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data() + offset, size);
  return value;
}

// Values that are wrong for some field: ends of ranges, signs, powers that overflow when they are
// multiplied by a size, and neighbours of the right value.
std::set<uint64_t> nasty_values(uint64_t right, size_t size) {
  std::set<uint64_t> values = {0,   1,     2,         5,         9,         13,
                               255, 65535, right - 1, right + 1, right * 2, right << 8};
  for (const int bit : {7, 8, 15, 16, 24, 31, 32, 33, 40, 56, 60, 61, 62, 63}) {
    values.insert(uint64_t{1} << bit);
    values.insert((uint64_t{1} << bit) - 1);
  }
  for (const uint64_t low : {1u, 2u, 8u, 18u, 32u, 64u}) values.insert(uint64_t{0} - low);
  std::set<uint64_t> masked;
  const uint64_t mask = size == 8 ? UINT64_MAX : (uint64_t{1} << (8 * size)) - 1;
  for (const uint64_t value : values) masked.insert(value & mask);
  masked.erase(right);
  return masked;
}

std::vector<Corruption> damaged_fields(const GgufBuilder& model) {
  std::vector<Corruption> result;
  for (const GgufBuilder::Field& field : model.fields) {
    const uint64_t right = get(model.bytes, field.offset, field.bytes);
    for (const uint64_t value : nasty_values(right, field.bytes)) {
      Corruption& c = result.emplace_back();
      c.name = field.name + " = " + std::to_string(value);
      c.bytes = model.bytes;
      put(c.bytes, field.offset, field.bytes, value);
    }
  }
  return result;
}

std::vector<Corruption> damaged_bytes(const GgufBuilder& model, size_t n_bytes) {
  std::vector<Corruption> result;
  for (size_t i = 0; i < n_bytes; ++i) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      Corruption& c = result.emplace_back();
      c.name = "byte " + std::to_string(i) + " ^ " + std::to_string(flip);
      c.bytes = model.bytes;
      c.bytes[i] ^= static_cast<std::byte>(flip);
    }
  }
  return result;
}

std::vector<Corruption> random_damage(const GgufBuilder& model, size_t n_bytes, int count) {
  std::vector<Corruption> result;
  std::mt19937 random(1);
  for (int i = 0; i < count; ++i) {
    Corruption& c = result.emplace_back();
    c.name = "random " + std::to_string(i);
    c.bytes = model.bytes;
    const size_t edits = 1 + random() % 8;
    for (size_t edit = 0; edit < edits; ++edit) {
      c.bytes[random() % n_bytes] = static_cast<std::byte>(random());
    }
    if (random() % 4 == 0) {  // remove or repeat a stretch, so that everything after it shifts
      const size_t at = random() % n_bytes;
      const size_t length = 1 + random() % 16;
      const Bytes stretch(c.bytes.begin() + at, c.bytes.begin() + at + length);
      if (random() % 2 == 0) {
        c.bytes.erase(c.bytes.begin() + at, c.bytes.begin() + at + length);
      } else {
        c.bytes.insert(c.bytes.begin() + at, stretch.begin(), stretch.end());
      }
    }
  }
  return result;
}

// Arrays of arrays, each claiming to hold as many as the rest of the file.
Corruption nested_arrays(size_t depth) {
  GgufBuilder b;
  b.header(0, 1).key("nested", 9);
  for (size_t i = 0; i < depth; ++i) {
    b.number("type", uint32_t{9}).number("count", uint64_t{1} + depth - i);
  }
  return {"arrays nested " + std::to_string(depth) + " deep", b.bytes};
}

std::vector<Corruption> hostile_structures() {
  std::vector<Corruption> result = {nested_arrays(2), nested_arrays(100), nested_arrays(100000)};
  GgufBuilder same_key;
  same_key.header(0, 60000);
  for (int i = 0; i < 60000; ++i) same_key.scalar<uint8_t>("k", 0, 0);
  result.push_back({"one key 60000 times", same_key.bytes});
  GgufBuilder huge;
  huge.header(0, 1).array("k", 8, 3).string("0", "x").number("1", uint64_t{1} << 63).raw("y");
  result.push_back({"a string of 2^63 bytes in an array", huge.bytes});
  GgufBuilder wrap;  // 24 + 9 + 4 + 12 + 8 bytes, then a length that wraps around to the start
  wrap.header(0, 1).array("k", 8, 2).number("0", UINT64_MAX - 63).string("1", "y");
  result.push_back({"a string that ends at the start of the file", wrap.bytes});
  GgufBuilder overlap;
  overlap.header(2, 0).tensor("a", {8}, 0, 0).tensor("b", {8}, 0, UINT64_MAX - 31).data(64);
  result.push_back({"a tensor that wraps around", overlap.bytes});
  GgufBuilder split;
  split.header(0, 3).scalar<uint16_t>("split.no", 2, 0).scalar<uint16_t>("split.count", 2, 65535);
  split.scalar<int32_t>("split.tensors.count", 5, 0);
  result.push_back({"a split of 65535 parts", split.bytes});
  return result;
}

// True if the file was refused.
bool refused(const Corruption& c) {
  SCOPED_TRACE(c.name);
  std::string text;
  Allocations seen;
  try {
    const AllocationWatch watch;
    std::shared_ptr<const GgufFile> file;
    try {
      file = GgufFile::from_bytes(c.bytes, "damaged.gguf");
    } catch (...) {
      seen = watch.seen();
      throw;
    }
    seen = watch.seen();
    volatile uint64_t kept = read_everything(*file);
    static_cast<void>(kept);
  } catch (const Error& error) {
    text = error.what();
    EXPECT_TRUE(text.starts_with("damaged.gguf: ")) << text;
    EXPECT_LT(text.size(), 400u) << text;
    const auto is_control = [](char ch) { return static_cast<unsigned char>(ch) < 0x20; };
    EXPECT_TRUE(std::ranges::none_of(text, is_control)) << printable(text, text.size());
  } catch (const std::exception& error) {
    ADD_FAILURE() << "not a kve::Error: " << error.what();
  }
  // The copy that from_bytes makes, and small change. The valid file costs about 5000 bytes.
  EXPECT_LT(seen.bytes, c.bytes.size() + 20000);
  return !text.empty();
}

int count_refused(const std::vector<Corruption>& corruptions) {
  return static_cast<int>(std::ranges::count_if(corruptions, refused));
}

// Where the tensor data begins: damage beyond it changes weights, which is not an error.
size_t header_bytes(const GgufBuilder& model) {
  return model.fields.back().offset + model.fields.back().bytes;
}

TEST(GgufCorruption, TheUndamagedFileOpens) {
  EXPECT_FALSE(refused({"undamaged", small_model().bytes}));
}

TEST(GgufCorruption, EveryFieldWithEveryNastyValue) {
  const std::vector<Corruption> corruptions = damaged_fields(small_model());
  ASSERT_GE(corruptions.size(), 3000u);
  const int n_refused = count_refused(corruptions);
  // Most fields are structure; the rest are values, where every bit pattern is valid.
  EXPECT_GE(n_refused, static_cast<int>(corruptions.size()) / 2);
}

TEST(GgufCorruption, EveryByteOfTheHeader) {
  const GgufBuilder model = small_model();
  const std::vector<Corruption> corruptions = damaged_bytes(model, header_bytes(model));
  ASSERT_GE(corruptions.size(), 2400u);
  EXPECT_GE(count_refused(corruptions), static_cast<int>(corruptions.size()) / 3);
}

TEST(GgufCorruption, EveryTruncation) {
  const GgufBuilder model = small_model();
  // The last tensor ends with the file, so that not one byte may be missing.
  for (size_t size = 0; size < model.bytes.size(); ++size) {
    const Bytes bytes(model.bytes.begin(), model.bytes.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_TRUE(refused({"cut to " + std::to_string(size) + " bytes", bytes}));
  }
}

TEST(GgufCorruption, HostileStructures) {
  for (const Corruption& c : hostile_structures()) EXPECT_TRUE(refused(c)) << c.name;
}

TEST(GgufCorruption, RandomDamage) {
  const GgufBuilder model = small_model();
  const std::vector<Corruption> corruptions = random_damage(model, header_bytes(model) - 32, 3000);
  const int n_refused = count_refused(corruptions);
  EXPECT_GE(n_refused, 1000);
  EXPECT_LT(n_refused, 3000);
}

}  // namespace
}  // namespace kve::test
