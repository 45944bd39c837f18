// What every coded weight type has in common: groups of 32 consecutive values of a row, written as
// int8 codes with one scale and one minimum per 16 values. Each header of this folder describes one
// type: its block (alignment 1, so that it may lie anywhere in a mapped file) and
//   KVE_HD void unpack_group(const BlockX& block, int group, CodeGroup* out);
// from which decoding follows. `value[i] = scale[i / 16] * codes[i] + min[i / 16]`, with the
// product and the sum each rounded to float32, is exactly the value that the type defines.
#pragma once

#include <stdint.h>

#include "base/half.h"

namespace kve {

constexpr int kGroupValues = 32;

struct CodeGroup {
  int8_t codes[32];
  float scale[2];
  float min[2];  // zero for types without a minimum
};

// Blocks are little-endian on every machine.
KVE_HD uint16_t load_u16(const uint8_t* bytes) {
  return static_cast<uint16_t>(bytes[0] | (bytes[1] << 8));
}
KVE_HD uint32_t load_u32(const uint8_t* bytes) {
  return static_cast<uint32_t>(load_u16(bytes)) |
         (static_cast<uint32_t>(load_u16(bytes + 2)) << 16);
}
KVE_HD void store_u16(uint16_t value, uint8_t* bytes) {
  bytes[0] = static_cast<uint8_t>(value & 255);
  bytes[1] = static_cast<uint8_t>(value >> 8);
}
KVE_HD float load_half(const uint8_t* bytes) { return half_to_float(load_u16(bytes)); }
KVE_HD void store_half(float value, uint8_t* bytes) { store_u16(float_to_half(value), bytes); }
KVE_HD float load_float(const uint8_t* bytes) { return float_from_bits(load_u32(bytes)); }

KVE_HD int8_t to_code(int value) { return static_cast<int8_t>(value); }

// One scale for all 32 values, no minimum.
KVE_HD void set_scale(CodeGroup* out, float scale) {
  out->scale[0] = out->scale[1] = scale;
  out->min[0] = out->min[1] = 0.0f;
}
// One scale and one minimum for all 32 values.
KVE_HD void set_scale(CodeGroup* out, float scale, float min) {
  out->scale[0] = out->scale[1] = scale;
  out->min[0] = out->min[1] = min;
}
// One scale per 16 values, no minimum.
KVE_HD void set_scales(CodeGroup* out, float first, float second) {
  out->scale[0] = first;
  out->scale[1] = second;
  out->min[0] = out->min[1] = 0.0f;
}

}  // namespace kve
