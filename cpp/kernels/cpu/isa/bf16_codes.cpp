#include "kernels/cpu/isa/bf16_codes.h"

#if defined(KVE_BF16_TILES)

#include <string.h>

#include "kernels/cpu/isa/page_params.h"

namespace kve::KVE_ISA {

constexpr int kCells = 4;         // of a strip
constexpr int kCellBytes = 64;    // 16 lanes of 4 codes
constexpr int kBlockBytes = 256;  // 16 lanes of 16 codes
constexpr int kBlockStrips = 4;   // of keys: 4 channels each
constexpr int kPairStrips = 8;    // of keys: 32 channels, whose halves are paired

// A block of codes that four cells hold: those of lane l lie at code_place(l), side by side.
static inline void put_block(I32 (&cells)[kCells], uint8_t* to) {
  turn_quads(cells);
  KVE_UNROLL(4)
  for (int i = 0; i < kCells; ++i) store_i32(to + kCellBytes * i, cells[i]);
}
static inline int code_place(int lane) { return kCellBytes * (lane % 4) + 16 * (lane / 4); }

static bool all_finite(const float* numbers, int64_t n) {
  F32 bad = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    bad = fma(load_n(numbers + i, least(n - i, kLanes)), zero(), bad);
  }
  return sum(bad) == 0;
}
static bool has_numbers(const PageParams& params) {
  const StripSide& side = params.side;
  const int64_t n = param_groups(params) * param_stride(params);
  if (!all_finite(params.scale, n) || !all_finite(params.zero, n)) return false;
  if (side.factors == StripFactors::none) return true;
  const bool of_tokens = side.factors == StripFactors::scale_tokens;
  return all_finite(params.factor, of_tokens ? kTile : params.padded);
}

// ---- keys: lanes of cells are tokens, and a strip is 4 channels ----

// The cells of a strip.
template <int kBits, bool kTable>
__attribute__((noinline)) static void unpack_strip(const std::byte* strip, const int8_t* table,
                                                   uint8_t* to) {
  for (int cell = 0; cell < kCells; ++cell, to += kCellBytes) {
    Cell w;
    raw_cell<kBits, kTable>(strip, cell, table, w);
    store_i32(to, w[0]);
  }
}

// The cells of the kPairStrips strips from number `first` on, zeros for those that are not there.
// Returns where the next strip's codes are.
static const std::byte* unpack_strips(const PageParams& params, int first, const std::byte* strip,
                                      uint8_t* to) {
  const StripSide& side = params.side;
  for (int s = first; s < first + kPairStrips; ++s, to += kCells * kCellBytes) {
    int bits = 0;
    if (s < key_strips(side.width)) {
      bits = side.strip_bits == nullptr ? side.bits : side.strip_bits[s];
    }
    if (bits == 0) {
      memset(to, 0, kCells * kCellBytes);
      continue;
    }
    with_code_bits(bits, side.levels == StripLevels::table, [&]<int kBits, bool kTable>() {
      unpack_strip<kBits, kTable>(strip, params.table, to);
    });
    strip += 32 * bits;
  }
  return strip;
}

namespace {

// What belongs to 16 channels of 16 tokens: a vector for channels, or a number for each token.
struct KeyParams {
  const float* scale;
  const float* zero;
  const float* factor;
};

}  // namespace

static inline KeyParams key_params(const PageParams& params, int64_t channel, int64_t token) {
  const StripSide& side = params.side;
  const int64_t group = side.per_channel ? token / side.group : channel / side.group;
  const int64_t at = group * param_stride(params) + (side.per_channel ? channel : token);
  const bool of_tokens = side.factors == StripFactors::scale_tokens;
  return {params.scale + at, params.zero + at, params.factor + (of_tokens ? token : channel)};
}

// 16 channels of a token.
template <bool kPerChannel, StripFactors kFactors>
static inline F32 key_values(const uint8_t* codes, const KeyParams& params, int token) {
  const auto at = [&](const float* numbers) {
    return kPerChannel ? load(numbers) : set(numbers[token]);
  };
  const F32 values = fma(to_f32(widen_u8(codes)), at(params.scale), at(params.zero));
  if constexpr (kFactors == StripFactors::add_channels) return values + load(params.factor);
  if constexpr (kFactors == StripFactors::scale_channels) return values * load(params.factor);
  if constexpr (kFactors == StripFactors::scale_tokens) return values * set(params.factor[token]);
  return values;
}

// 32 channels of 16 tokens, whose cells are [kPairStrips][4 times 16 tokens]; the upper ones are
// zero if they are beyond the page's.
template <bool kPerChannel, StripFactors kFactors>
__attribute__((noinline)) static void put_tokens(const PageParams& params, const uint8_t* cells,
                                                 int64_t channel, int64_t token, int64_t words,
                                                 int32_t* to, int32_t* rest) {
  alignas(64) uint8_t codes[2 * kBlockBytes];
  const uint8_t* from = cells + token / kLanes * kCellBytes;
  for (int half = 0; half < 2; ++half) {
    I32 block[kCells];
    for (int i = 0; i < kBlockStrips; ++i, from += kCells * kCellBytes) block[i] = load_i32(from);
    put_block(block, codes + half * kBlockBytes);
  }
  const bool whole = channel + kLanes < params.padded;
  const KeyParams low = key_params(params, channel, token);
  const KeyParams high = whole ? key_params(params, channel + kLanes, token) : low;
  KVE_UNROLL(4)
  for (int t = 0; t < kLanes; ++t) {
    const uint8_t* at = codes + code_place(t);
    const F32 a = key_values<kPerChannel, kFactors>(at, low, t);
    const F32 b = whole ? key_values<kPerChannel, kFactors>(at + kBlockBytes, high, t) : zero();
    const I32 pair = round_bf16_pair(a, b);
    store_i32(to + t * words, pair);
    if (rest == nullptr) continue;
    store_i32(rest + t * words, round_rest(pair, a, b));
  }
}

using PutTokens = void (*)(const PageParams&, const uint8_t*, int64_t, int64_t, int64_t, int32_t*,
                           int32_t*);
template <bool kPerChannel>
static PutTokens put_tokens_of(StripFactors factors) {
  switch (factors) {
    case StripFactors::add_channels:
      return put_tokens<kPerChannel, StripFactors::add_channels>;
    case StripFactors::scale_channels:
      return put_tokens<kPerChannel, StripFactors::scale_channels>;
    case StripFactors::scale_tokens:
      return put_tokens<kPerChannel, StripFactors::scale_tokens>;
    default:
      return put_tokens<kPerChannel, StripFactors::none>;
  }
}

static void clear_words(int64_t words, int32_t* to) {
  for (int t = 0; t < kTile; ++t) store_i32(to + t * words, set_i32(0));
}

bool round_key_codes(const StripSide& side, const PageView& page, float* scratch, WordTile* tile,
                     int32_t* rest) {
  const PageParams params = load_page_params(side, page, scratch);
  if (!has_numbers(params)) return false;
  const PutTokens put =
      side.per_channel ? put_tokens_of<true>(side.factors) : put_tokens_of<false>(side.factors);
  const std::byte* strip = page.data + side.code_offset;
  alignas(64) uint8_t cells[kPairStrips * kCells * kCellBytes];
  for (int64_t c = 0; c < 2 * tile->key_words; c += 2 * kLanes) {
    int32_t* to = tile->keys + c / 2;
    int32_t* rest_to = rest == nullptr ? nullptr : rest + c / 2;
    if (c >= params.padded) {
      clear_words(tile->key_words, to);
      if (rest != nullptr) clear_words(tile->key_words, rest_to);
      continue;
    }
    strip = unpack_strips(params, static_cast<int>(c / 4), strip, cells);
    for (int64_t t = 0; t < kTile; t += kLanes) {
      const int64_t at = t * tile->key_words;
      put(params, cells, c, t, tile->key_words, to + at, rest == nullptr ? nullptr : rest_to + at);
    }
  }
  tile->broken_keys = 0;
  return true;
}

// ---- values: lanes of cells are channels, and a strip is 16 tokens ----

// The block of a strip: 16 tokens of 16 channels.
template <int kBits, bool kTable>
static inline void unpack_block(const std::byte* strip, const int8_t* table, uint8_t* to) {
  I32 cells[kCells];
  KVE_UNROLL(4)
  for (int cell = 0; cell < kCells; ++cell) {
    Cell w;
    raw_cell<kBits, kTable>(strip, cell, table, w);
    cells[cell] = w[0];
  }
  put_block(cells, to);
}

namespace {

// Numbers of 32 tokens in pairs: those of even and of odd places.
struct TokenPairs {
  F32 even;
  F32 odd;
};

}  // namespace

static inline TokenPairs pairs_of(const float* tokens) {
  const F32 a = load(tokens);
  const F32 b = load(tokens + kLanes);
  return {every_second<0>(a, b), every_second<1>(a, b)};
}

template <StripFactors kFactors>
static inline F32 value_pairs(const uint8_t* codes, TokenPairs scale, TokenPairs zeros,
                              float factor) {
  const I32 raw = widen_u16(codes, codes + kBlockBytes);
  F32 even = fma(to_f32(raw & set_i32(255)), scale.even, zeros.even);
  F32 odd = fma(to_f32(shift_right(raw, 8)), scale.odd, zeros.odd);
  if constexpr (kFactors == StripFactors::add_channels) {
    even = even + set(factor);
    odd = odd + set(factor);
  }
  if constexpr (kFactors == StripFactors::scale_channels) {
    even = even * set(factor);
    odd = odd * set(factor);
  }
  return as_f32(round_bf16_pair(even, odd));
}

// 16 channels of 32 tokens, whose strips are neighbours.
template <int kBits, bool kTable, StripFactors kFactors>
__attribute__((noinline)) static void put_channels(const PageParams& params, const std::byte* strip,
                                                   int64_t channel, int64_t token, int32_t* to) {
  alignas(64) uint8_t codes[2 * kBlockBytes];
  unpack_block<kBits, kTable>(strip, params.table, codes);
  unpack_block<kBits, kTable>(strip + 32 * kBits, params.table, codes + kBlockBytes);
  const int64_t at = channel / params.side.group * kTile + token;
  const TokenPairs scale = pairs_of(params.scale + at);
  const TokenPairs zeros = pairs_of(params.zero + at);
  KVE_UNROLL(4)
  for (int c = 0; c < kLanes; ++c, to += kTile / 2) {
    store(reinterpret_cast<float*>(to),
          value_pairs<kFactors>(codes + code_place(c), scale, zeros, params.factor[channel + c]));
  }
}

template <StripFactors kFactors>
static void put_values(const PageParams& params, const std::byte* strip, int32_t* to) {
  const StripSide& side = params.side;
  with_code_bits(side.bits, side.levels == StripLevels::table, [&]<int kBits, bool kTable>() {
    for (int64_t c = 0; c < params.padded; c += kLanes, to += kLanes * (kTile / 2)) {
      for (int64_t t = 0; t < kTile; t += 2 * kLanes, strip += 2 * 32 * kBits) {
        put_channels<kBits, kTable, kFactors>(params, strip, c, t, to + t / 2);
      }
    }
  });
}

bool round_value_codes(const StripSide& side, const PageView& page, float* scratch,
                       WordTile* tile) {
  if (side.per_channel || side.factors == StripFactors::scale_tokens) return false;
  const PageParams params = load_page_params(side, page, scratch);
  if (!has_numbers(params)) return false;
  const std::byte* strip = page.data + side.code_offset;
  if (side.factors == StripFactors::add_channels) {
    put_values<StripFactors::add_channels>(params, strip, tile->values);
  } else if (side.factors == StripFactors::scale_channels) {
    put_values<StripFactors::scale_channels>(params, strip, tile->values);
  } else {
    put_values<StripFactors::none>(params, strip, tile->values);
  }
  // Channels are multiplied in blocks.
  if (params.padded < round_up(side.width, kBf16Rows)) {
    memset(tile->values + params.padded * (kTile / 2), 0, sizeof(int32_t) * kLanes * (kTile / 2));
  }
  tile->broken_values = 0;
  for (int32_t r = 0; r < kTile; r += kLanes) {
    store(tile->value_log + r, zero());
    store(tile->value_inverse + r, set(1.0f));
  }
  return true;
}

}  // namespace kve::KVE_ISA

#endif
