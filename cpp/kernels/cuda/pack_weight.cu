// Weights as device memory holds them, made on the host.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "formats/weight/q4_0.h"
#include "formats/weight/q4_1.h"
#include "formats/weight/q4_k.h"
#include "formats/weight/q5_0.h"
#include "formats/weight/q5_1.h"
#include "formats/weight/q5_k.h"
#include "formats/weight/q6_k.h"
#include "formats/weight/q8_0.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/packed_weight.h"

namespace kve::cuda {
namespace {

void put(std::byte* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

void pack_codes(const PackedLayout& layout, const PackedRow& at, int64_t g, const CodeGroup& group,
                std::byte* row) {
  if (layout.code_bytes == 32) return put(row + 32 * g, group.codes, 32);
  uint8_t codes[32];
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(group.codes[i] + layout.offset);
  uint8_t nibbles[16];
  for (int i = 0; i < 16; ++i) {
    nibbles[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
  }
  put(row + 16 * g, nibbles, 16);
  uint8_t extra[8] = {};
  for (int i = 0; i < 32; ++i) {
    const int high = codes[i] >> 4;
    if (layout.extra_bytes == 4) extra[i / 8] |= static_cast<uint8_t>(high << (i % 8));
    if (layout.extra_bytes == 8) {
      extra[i / 16 * 4 + i % 4] |= static_cast<uint8_t>(high << (i % 16 / 4 * 2));
    }
  }
  put(row + at.extra + g * layout.extra_bytes, extra, static_cast<size_t>(layout.extra_bytes));
}

template <class Block>
void pack_k_scales(const PackedRow& at, const std::byte* blocks, int64_t groups, std::byte* row) {
  for (int64_t g = 0; g < groups; ++g) {
    Block block;
    put(reinterpret_cast<std::byte*>(&block), blocks + g / 8 * static_cast<int64_t>(sizeof(Block)),
        sizeof(Block));
    const KScale k = load_k_scale(block.scales, static_cast<int>(g % 8));
    const uint8_t pair[2] = {static_cast<uint8_t>(k.scale), static_cast<uint8_t>(k.min)};
    put(row + at.params + 2 * g, pair, 2);
    put(row + at.units + g / 8 * 4, block.d, 2);
    put(row + at.units + g / 8 * 4 + 2, block.dmin, 2);
  }
}

void pack_q6_scales(const PackedRow& at, const std::byte* blocks, int64_t groups, std::byte* row) {
  for (int64_t g = 0; g < groups; ++g) {
    BlockQ6_K block;
    put(reinterpret_cast<std::byte*>(&block),
        blocks + g / 8 * static_cast<int64_t>(sizeof(BlockQ6_K)), sizeof(BlockQ6_K));
    put(row + at.params + 2 * g, block.scales + 2 * (g % 8), 2);
    put(row + at.units + g / 8 * 4, block.d, 2);
  }
}

// The scales, and minima, that stand at the beginning of blocks of 32 values.
void pack_simple_scales(const PackedRow& at, const std::byte* blocks, size_t block_bytes,
                        int param_bytes, int64_t groups, std::byte* row) {
  for (int64_t g = 0; g < groups; ++g) {
    put(row + at.params + g * param_bytes, blocks + static_cast<size_t>(g) * block_bytes,
        static_cast<size_t>(param_bytes));
  }
}

bool is_plain(WeightType type) {
  return type == WeightType::f32 || type == WeightType::f16 || type == WeightType::bf16;
}

// Floats as they are, other values in binary16.
void pack_floats(const Weight& weight, std::byte* packed) {
  const bool as_is = is_plain(weight.type);
  const size_t bytes = row_bytes(packed_type(weight.type), weight.cols);
  std::vector<float> values(as_is ? 0 : static_cast<size_t>(weight.cols));
  for (int64_t r = 0; r < weight.rows; ++r) {
    const std::byte* from = weight.data + static_cast<size_t>(r) * weight.row_bytes;
    std::byte* to = packed + static_cast<size_t>(r) * bytes;
    if (as_is) {
      put(to, from, bytes);
      continue;
    }
    format(weight.type).decode(from, values.data(), weight.cols);
    for (size_t c = 0; c < values.size(); ++c) {
      const uint16_t half = float_to_half(values[c]);
      if (std::isfinite(values[c]) && (half & 0x7c00) == 0x7c00) {
        throw UnsupportedError(message("cuda: weights of ", format(weight.type).name,
                                       ": expected values of at most 65504, found ", values[c]));
      }
      put(to + 2 * c, &half, sizeof(half));
    }
  }
}

}  // namespace

WeightType packed_type(WeightType type) {
  return is_plain(type) || packed_layout(type).code_bytes > 0 ? type : WeightType::f16;
}

size_t packed_bytes(const Weight& weight) {
  const WeightType type = packed_type(weight.type);
  if (is_plain(type)) return static_cast<size_t>(weight.rows) * row_bytes(type, weight.cols);
  const PackedRow at = packed_row(packed_layout(type), weight.cols / kGroupValues);
  return static_cast<size_t>(weight.rows * at.end);
}

void pack_weight(const Weight& weight, std::byte* packed) {
  if (is_plain(packed_type(weight.type))) return pack_floats(weight, packed);
  const PackedLayout layout = packed_layout(weight.type);
  const WeightFormat& type = format(weight.type);
  const int64_t groups = weight.cols / kGroupValues;
  const PackedRow at = packed_row(layout, groups);
  std::vector<CodeGroup> codes(static_cast<size_t>(groups));
  for (int64_t r = 0; r < weight.rows; ++r) {
    const std::byte* from = weight.data + static_cast<size_t>(r) * weight.row_bytes;
    std::byte* row = packed + r * at.end;
    std::fill_n(row, at.end, std::byte{0});
    type.unpack(from, 0, groups, codes.data());
    for (int64_t g = 0; g < groups; ++g) {
      pack_codes(layout, at, g, codes[static_cast<size_t>(g)], row);
    }
    switch (weight.type) {
      case WeightType::q4_k:
        pack_k_scales<BlockQ4_K>(at, from, groups, row);
        break;
      case WeightType::q5_k:
        pack_k_scales<BlockQ5_K>(at, from, groups, row);
        break;
      case WeightType::q6_k:
        pack_q6_scales(at, from, groups, row);
        break;
      default:
        pack_simple_scales(at, from, static_cast<size_t>(type.block_bytes), layout.param_bytes,
                           groups, row);
    }
  }
}

}  // namespace kve::cuda
