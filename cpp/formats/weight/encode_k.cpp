// Encoders of the K types: scale_search.h chooses the numbers, this file lays out their bits.
#include <cstring>

#include "formats/weight/encoders.h"
#include "formats/weight/q4_k.h"
#include "formats/weight/q5_k.h"
#include "formats/weight/q6_k.h"
#include "formats/weight/scale_search.h"

namespace kve {

namespace {

// The inverse of load_k_scale.
void store_k_scales(const AffineBlock& fitted, uint8_t* packed) {
  for (int i = 0; i < 4; ++i) {
    const int high_scale = fitted.scales[i + 4], high_min = fitted.mins[i + 4];
    packed[i] = static_cast<uint8_t>(fitted.scales[i] | ((high_scale >> 4) << 6));
    packed[i + 4] = static_cast<uint8_t>(fitted.mins[i] | ((high_min >> 4) << 6));
    packed[i + 8] = static_cast<uint8_t>((high_scale & 15) | ((high_min & 15) << 4));
  }
}

// Groups 2j and 2j + 1 in the low and high nibbles of 32 bytes.
void store_nibbles(const uint8_t* codes, uint8_t* qs) {
  for (int i = 0; i < 128; ++i) {
    const uint8_t* pair = codes + 64 * (i / 32) + i % 32;
    qs[i] = static_cast<uint8_t>((pair[0] & 15) | ((pair[32] & 15) << 4));
  }
}

void encode_block(const float* x, BlockQ4_K* block) {
  AffineBlock fitted;
  fit_affine(x, 15, &fitted);
  store_half(fitted.d, block->d);
  store_half(fitted.dmin, block->dmin);
  store_k_scales(fitted, block->scales);
  store_nibbles(fitted.codes, block->qs);
}

void encode_block(const float* x, BlockQ5_K* block) {
  AffineBlock fitted;
  fit_affine(x, 31, &fitted);
  store_half(fitted.d, block->d);
  store_half(fitted.dmin, block->dmin);
  store_k_scales(fitted, block->scales);
  store_nibbles(fitted.codes, block->qs);
  for (int i = 0; i < 32; ++i) {
    int bits = 0;
    for (int group = 0; group < 8; ++group) bits |= (fitted.codes[32 * group + i] >> 4) << group;
    block->qh[i] = static_cast<uint8_t>(bits);
  }
}

void encode_block(const float* x, BlockQ6_K* block) {
  SymmetricBlock fitted;
  fit_symmetric(x, 32, &fitted);
  store_half(fitted.d, block->d);
  for (int i = 0; i < 16; ++i) block->scales[i] = static_cast<int8_t>(fitted.scales[i]);
  for (int i = 0; i < 64; ++i) {  // byte i % 32 of qh in half i / 32
    const int8_t* first = fitted.codes + 128 * (i / 32) + i % 32;
    const int codes[4] = {first[0] + 32, first[32] + 32, first[64] + 32, first[96] + 32};
    uint8_t* ql = block->ql + 64 * (i / 32) + i % 32;
    ql[0] = static_cast<uint8_t>((codes[0] & 15) | ((codes[2] & 15) << 4));
    ql[32] = static_cast<uint8_t>((codes[1] & 15) | ((codes[3] & 15) << 4));
    block->qh[i] = static_cast<uint8_t>((codes[0] >> 4) | ((codes[1] >> 4) << 2) |
                                        ((codes[2] >> 4) << 4) | ((codes[3] >> 4) << 6));
  }
}

template <class Block>
void encode_blocks(const float* src, std::byte* dst, int64_t n) {
  for (int64_t i = 0; i < n / kSuperBlock; ++i) {
    Block block;
    encode_block(src + i * kSuperBlock, &block);
    std::memcpy(dst + i * static_cast<int64_t>(sizeof(Block)), &block, sizeof(Block));
  }
}

}  // namespace

void encode_q4_k(const float* src, std::byte* dst, int64_t n) {
  encode_blocks<BlockQ4_K>(src, dst, n);
}
void encode_q5_k(const float* src, std::byte* dst, int64_t n) {
  encode_blocks<BlockQ5_K>(src, dst, n);
}
void encode_q6_k(const float* src, std::byte* dst, int64_t n) {
  encode_blocks<BlockQ6_K>(src, dst, n);
}

}  // namespace kve
