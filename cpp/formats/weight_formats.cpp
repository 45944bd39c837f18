#include "formats/weight_formats.h"

#include <cstring>
#include <limits>
#include <string>

#include "base/error.h"
#include "formats/weight/encoders.h"
#include "formats/weight/iq1_m.h"
#include "formats/weight/iq1_s.h"
#include "formats/weight/iq2_s.h"
#include "formats/weight/iq2_xs.h"
#include "formats/weight/iq2_xxs.h"
#include "formats/weight/iq3_s.h"
#include "formats/weight/iq3_xxs.h"
#include "formats/weight/iq4_nl.h"
#include "formats/weight/iq4_xs.h"
#include "formats/weight/mxfp4.h"
#include "formats/weight/q2_k.h"
#include "formats/weight/q3_k.h"
#include "formats/weight/q4_0.h"
#include "formats/weight/q4_1.h"
#include "formats/weight/q4_k.h"
#include "formats/weight/q5_0.h"
#include "formats/weight/q5_1.h"
#include "formats/weight/q5_k.h"
#include "formats/weight/q6_k.h"
#include "formats/weight/q8_0.h"
#include "formats/weight/q8_k.h"
#include "formats/weight/tq1_0.h"
#include "formats/weight/tq2_0.h"

namespace kve {

namespace {

// Blocks consist of bytes, so the cast neither misaligns nor misreads anything.
template <class Block>
const Block* as_blocks(const std::byte* bytes) {
  static_assert(alignof(Block) == 1);
  return reinterpret_cast<const Block*>(bytes);
}

template <class Block>
void unpack(const std::byte* row, int64_t first_group, int64_t n_groups, CodeGroup* out) {
  constexpr int kGroups = Block::kValues / kGroupValues;
  const Block* blocks = as_blocks<Block>(row);
  for (int64_t i = 0; i < n_groups; ++i) {
    const int64_t group = first_group + i;
    unpack_group(blocks[group / kGroups], static_cast<int>(group % kGroups), &out[i]);
  }
}

template <class Block>
void decode(const std::byte* src, float* dst, int64_t n) {
  CodeGroup group;
  for (int64_t g = 0; g < n / kGroupValues; ++g) {
    unpack<Block>(src, g, 1, &group);
    for (int i = 0; i < kGroupValues; ++i) {
      const float value = group.scale[i / 16] * static_cast<float>(group.codes[i]);
      // Adding an absent minimum would turn -0 into +0. The build forbids contraction to an fma.
      dst[g * kGroupValues + i] = Block::kHasMin ? value + group.min[i / 16] : value;
    }
  }
}

template <class Number>
void decode_numbers(const std::byte* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    Number number;
    std::memcpy(&number, src + i * static_cast<int64_t>(sizeof(Number)), sizeof(Number));
    if constexpr (requires { to_float(number); }) {
      dst[i] = to_float(number);
    } else {
      dst[i] = static_cast<float>(number);
    }
  }
}

using Encoder = void (*)(const float*, std::byte*, int64_t);

template <class Block>
constexpr WeightFormat coded(WeightType type, std::string_view name, Encoder encode = nullptr) {
  return {type,           name,   Block::kValues, static_cast<int>(sizeof(Block)),
          &decode<Block>, encode, &unpack<Block>, Block::kHasMin};
}

template <class Number>
constexpr WeightFormat plain(WeightType type, std::string_view name, Encoder encode = nullptr) {
  return {type,   name,    1,    static_cast<int>(sizeof(Number)), &decode_numbers<Number>,
          encode, nullptr, false};
}

// In order of the numbers.
constexpr WeightFormat kFormats[] = {
    plain<float>(WeightType::f32, "F32", encode_f32),
    plain<half>(WeightType::f16, "F16", encode_f16),
    coded<BlockQ4_0>(WeightType::q4_0, "Q4_0", encode_q4_0),
    coded<BlockQ4_1>(WeightType::q4_1, "Q4_1", encode_q4_1),
    coded<BlockQ5_0>(WeightType::q5_0, "Q5_0", encode_q5_0),
    coded<BlockQ5_1>(WeightType::q5_1, "Q5_1", encode_q5_1),
    coded<BlockQ8_0>(WeightType::q8_0, "Q8_0", encode_q8_0),
    coded<BlockQ2_K>(WeightType::q2_k, "Q2_K"),
    coded<BlockQ3_K>(WeightType::q3_k, "Q3_K"),
    coded<BlockQ4_K>(WeightType::q4_k, "Q4_K", encode_q4_k),
    coded<BlockQ5_K>(WeightType::q5_k, "Q5_K", encode_q5_k),
    coded<BlockQ6_K>(WeightType::q6_k, "Q6_K", encode_q6_k),
    coded<BlockQ8_K>(WeightType::q8_k, "Q8_K"),
    coded<BlockIQ2_XXS>(WeightType::iq2_xxs, "IQ2_XXS"),
    coded<BlockIQ2_XS>(WeightType::iq2_xs, "IQ2_XS"),
    coded<BlockIQ3_XXS>(WeightType::iq3_xxs, "IQ3_XXS"),
    coded<BlockIQ1_S>(WeightType::iq1_s, "IQ1_S"),
    coded<BlockIQ4_NL>(WeightType::iq4_nl, "IQ4_NL"),
    coded<BlockIQ3_S>(WeightType::iq3_s, "IQ3_S"),
    coded<BlockIQ2_S>(WeightType::iq2_s, "IQ2_S"),
    coded<BlockIQ4_XS>(WeightType::iq4_xs, "IQ4_XS"),
    plain<int8_t>(WeightType::i8, "I8"),
    plain<int16_t>(WeightType::i16, "I16"),
    plain<int32_t>(WeightType::i32, "I32"),
    plain<int64_t>(WeightType::i64, "I64"),
    plain<double>(WeightType::f64, "F64"),
    coded<BlockIQ1_M>(WeightType::iq1_m, "IQ1_M"),
    plain<bfloat16>(WeightType::bf16, "BF16", encode_bf16),
    coded<BlockTQ1_0>(WeightType::tq1_0, "TQ1_0"),
    coded<BlockTQ2_0>(WeightType::tq2_0, "TQ2_0"),
    coded<BlockMXFP4>(WeightType::mxfp4, "MXFP4"),
};

}  // namespace

std::span<const WeightFormat> weight_formats() { return kFormats; }

const WeightFormat* find_format(uint32_t ggml_type) {
  for (const WeightFormat& candidate : kFormats) {
    if (static_cast<uint32_t>(candidate.type) == ggml_type) return &candidate;
  }
  return nullptr;
}

const WeightFormat& format(WeightType type) {
  const WeightFormat* found = find_format(static_cast<uint32_t>(type));
  if (found != nullptr) return *found;
  std::string known;
  for (const WeightFormat& each : kFormats) {
    known.append(known.empty() ? "" : ", ").append(each.name);
  }
  throw UnsupportedError(message("weight type: expected one of ", known, "; found number ",
                                 static_cast<uint32_t>(type)));
}

size_t row_bytes(WeightType type, int64_t n_values) {
  const WeightFormat& weights = format(type);
  if (n_values < 0 || n_values % weights.block_values != 0) {
    throw FormatError(message(weights.name, " row: expected a multiple of ", weights.block_values,
                              " values, found ", n_values));
  }
  const uint64_t n_blocks = static_cast<uint64_t>(n_values / weights.block_values);
  const uint64_t block_bytes = static_cast<uint64_t>(weights.block_bytes);
  if (n_blocks > std::numeric_limits<size_t>::max() / block_bytes) {
    throw FormatError(message(weights.name, " row: expected a size that fits in memory, found ",
                              n_values, " values"));
  }
  return static_cast<size_t>(n_blocks * block_bytes);
}

}  // namespace kve
