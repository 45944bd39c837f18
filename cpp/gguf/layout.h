// The numbers of the GGUF layout, and the limits this engine sets to what a file may claim.
// Shared by the reader and the writer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "formats/weight_formats.h"

namespace kve::gguf {

inline constexpr std::string_view kMagic = "GGUF";
inline constexpr uint32_t kMinVersion = 2;
inline constexpr uint32_t kMaxVersion = 3;

inline constexpr std::string_view kAlignmentKey = "general.alignment";
inline constexpr uint64_t kDefaultAlignment = 32;
// The specification asks for a multiple of 8, which also lets tensors of doubles be read in place.
inline constexpr uint64_t kMinAlignment = 8;
inline constexpr uint64_t kMaxAlignment = 65536;

inline constexpr size_t kMaxDims = 4;
inline constexpr uint64_t kMaxKeyBytes = 65535;  // as the specification says
// Far above what any model needs (64 in ggml), far below what could exhaust memory.
inline constexpr uint64_t kMaxTensorNameBytes = 1024;
inline constexpr uint64_t kMaxMetadata = uint64_t{1} << 16;
inline constexpr uint64_t kMaxTensors = uint64_t{1} << 18;
inline constexpr uint64_t kMaxArray = uint64_t{1} << 23;

// Smallest number of bytes an entry can take, to check counts against the bytes that remain.
inline constexpr uint64_t kMinMetadataBytes = 8 + 1 + 4 + 1;            // key, type, value
inline constexpr uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;  // name, dims, type, offset

constexpr bool is_valid_alignment(uint64_t alignment) {
  return alignment >= kMinAlignment && alignment <= kMaxAlignment &&
         (alignment & (alignment - 1)) == 0;
}

// `value` is a position in a file, so the sum cannot overflow.
constexpr uint64_t align_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

// Product of sizes >= 0; nothing if it exceeds int64_t.
constexpr std::optional<int64_t> product(std::span<const int64_t> sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) {
    if (size != 0 && result > INT64_MAX / size) return std::nullopt;
    result *= size;
  }
  return result;
}

// Bytes of `n_values` values, a multiple of the block; nothing if they exceed int64_t.
constexpr std::optional<uint64_t> tensor_bytes(const WeightFormat& format, int64_t n_values) {
  const int64_t blocks = n_values / format.block_values;
  if (blocks > INT64_MAX / format.block_bytes) return std::nullopt;
  return static_cast<uint64_t>(blocks) * static_cast<uint64_t>(format.block_bytes);
}

}  // namespace kve::gguf
