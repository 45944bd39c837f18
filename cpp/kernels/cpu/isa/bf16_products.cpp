// Many inputs against quantized weights by the tile unit (simd/amx.h): inputs and weights are
// rounded to bf16, 8 bits of mantissa each, and sums are floats that stay in its registers. An
// eighth of the time of the same products in int8, and a third of their error: neither scales nor
// second planes are left to be multiplied with.
#include "simd/amx.h"

#include <string.h>

#include "kernels/cpu/isa/gated_work.h"
#include "kernels/cpu/isa/slice.h"

#if defined(KVE_ISA_AMX)

namespace kve::KVE_ISA {
namespace {

static_assert(kSliceRows == 2 * kTileUnitRows && kLanes == kTileUnitRows);

// A step is 32 columns: pairs of bf16 numbers of columns p and 16 + p. Of 16 inputs, or of 16 rows
// of weights, it fills a register.
constexpr int64_t kStepNumbers = 16 * 32;

struct Rounded {
  uint16_t* rows;  // [2][steps][16 pairs][16 rows][2]
  std::byte* slice;
  size_t size;

  Rounded(std::byte* data, int64_t cols) {
    Carver carver(data);
    rows = carver.take<uint16_t>(2 * cols / 32 * kStepNumbers);
    slice = carver.take<std::byte>(static_cast<int64_t>(Slice(nullptr, cols).size));
    size = carver.size();
  }
};

// What turns the codes of a group, or of half a group, into weights.
template <bool kOffsets>
struct Scaling {
  F32 scale;
  F32 offset;

  // A scale or minimum that is no number gives weights that are none.
  Scaling(F32 by, F32 minimum) {
    const F32 sum = kOffsets ? minimum - by * set(kBias) : minimum;
    const Mask finite = less(abs(sum) + abs(by), set(__builtin_inff()));
    scale = select(finite, by, zero());
    offset = select(finite, sum, set(__builtin_nanf("")));
  }

  // Of byte kByte of the lanes of a word of codes.
  template <int kByte>
  F32 weight(I32 word) const {
    // The bits of the float 256 + byte: its mantissa begins at bit 22.
    const I32 moved =
        kByte < 2 ? shift_left(word, 15 - 8 * kByte) : shift_right(word, 8 * kByte - 15);
    const F32 code = as_f32(blend_bits(set_i32(0x7f8000), moved, set_i32(0x43800000)));
    return kOffsets ? fma(code, scale, offset) : fma(code - set(kBias), scale, offset);
  }

 private:
  static constexpr float kBias = 256.0f + kDotBias;
};

}  // namespace

// ---- packs: [steps][16 inputs][16 pairs] ----

static size_t bf16_pack_bytes(int64_t cols) {
  return static_cast<size_t>(cols / 32 * kStepNumbers) * sizeof(uint16_t);
}

static inline void round_step(const float* x, std::byte* dst) {
  store_i32(dst, round_bf16_pair(load(x), load(x + kLanes)));
}

static void bf16_pack(const float* x, int64_t stride, int64_t n_tokens, int64_t cols,
                      float /*least_error*/, std::byte* dst) {
  const size_t bytes = bf16_pack_bytes(cols);
  if (n_tokens < kTileUnitRows) memset(dst, 0, bytes);
  for (int64_t t = 0; t < n_tokens; ++t) {
    for (int64_t step = 0; step < cols / 32; ++step) {
      round_step(x + t * stride + 32 * step, dst + step * kTileUnitBytes + t * 64);
    }
  }
}

// ---- weights ----

template <bool kHalves, bool kMin, bool kOffsets>
static void round_rows(const Slice& slice, int64_t n_groups, int v, uint16_t* dst) {
  constexpr int kParts = kHalves ? 2 : 1;
  for (int64_t g = 0; g < n_groups; ++g, dst += kStepNumbers) {
    const auto scaling = [&](int64_t part) {
      const int64_t place = (g * kParts + part) * kSliceRows + v * kLanes;
      return Scaling<kOffsets>(load(slice.scales + place),
                               kMin ? load(slice.minima + place) : zero());
    };
    const Scaling<kOffsets> low = scaling(0);
    const Scaling<kOffsets> high = kHalves ? scaling(1) : low;
    KVE_UNROLL(4)
    for (int j = 0; j < 4; ++j) {
      const int8_t* codes = slice.codes + ((8 * g + j) * kSliceRows + v * kLanes) * 4;
      const I32 first = load_i32(codes);
      const I32 second = load_i32(codes + 4 * kSliceRows * 4);
      const auto put = [&]<int kByte>() {
        store_i32(dst + (4 * j + kByte) * 2 * kLanes,
                  round_bf16_pair(low.template weight<kByte>(first),
                                  high.template weight<kByte>(second)));
      };
      put.template operator()<0>();
      put.template operator()<1>();
      put.template operator()<2>();
      put.template operator()<3>();
    }
  }
}

template <bool kHalves, bool kMin>
static void round_slice(const MatmulChunk& chunk, const Slice& slice, uint16_t* dst) {
  const int64_t n_groups = chunk.cols / 32;
  const bool offsets = has_offsets(chunk.format->type);
  for (int v = 0; v < kMatVectors; ++v, dst += n_groups * kStepNumbers) {
    if (offsets) {
      round_rows<kHalves, kMin, true>(slice, n_groups, v, dst);
    } else {
      round_rows<kHalves, kMin, false>(slice, n_groups, v, dst);
    }
  }
}

static void round_weights(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                          const Rounded& work) {
  const Slice slice(work.slice, chunk.cols);
  unpack_rows(chunk, first_row, n_rows, slice);
  if (one_scale(chunk.format->type)) {
    chunk.format->has_min ? round_slice<false, true>(chunk, slice, work.rows)
                          : round_slice<false, false>(chunk, slice, work.rows);
  } else {
    chunk.format->has_min ? round_slice<true, true>(chunk, slice, work.rows)
                          : round_slice<true, false>(chunk, slice, work.rows);
  }
}

// ---- products ----

// Inputs are asked for this far ahead of their use.
constexpr int64_t kAhead = 2 * kTileUnitBytes;

static inline void ask_for(const std::byte* step) {
  KVE_UNROLL(16)
  for (int i = 0; i < kTileUnitBytes; i += 64) prefetch_near(step + i);
}

// kPacks packs times 32 rows: y[input][row].
template <int kPacks>
static void multiply_packs(const std::byte* packs, size_t pack_stride, const uint16_t* rows,
                           int64_t n_steps, float* y, int64_t y_stride) {
  const auto* a = packs;
  const auto* b = reinterpret_cast<const std::byte*>(rows);
  const int64_t next_rows = n_steps * kTileUnitBytes;
  zero_tile<0>();
  zero_tile<1>();
  if constexpr (kPacks == 2) {
    zero_tile<2>();
    zero_tile<3>();
  }
  for (int64_t step = 0; step < n_steps; ++step, a += kTileUnitBytes, b += kTileUnitBytes) {
    for (int i = 0; i < kPacks; ++i) ask_for(a + i * pack_stride + kAhead);
    load_tile<4>(a, 64);
    load_tile<6>(b, 64);
    dot_bf16<0, 4, 6>();
    load_tile<7>(b + next_rows, 64);
    dot_bf16<1, 4, 7>();
    if constexpr (kPacks == 2) {
      load_tile<5>(a + pack_stride, 64);
      dot_bf16<2, 5, 6>();
      dot_bf16<3, 5, 7>();
    }
  }
  const int64_t stride = y_stride * static_cast<int64_t>(sizeof(float));
  store_tile<0>(y, stride);
  store_tile<1>(y + kTileUnitRows, stride);
  if constexpr (kPacks == 2) {
    y += kTileUnitRows * y_stride;
    store_tile<2>(y, stride);
    store_tile<3>(y + kTileUnitRows, stride);
  }
}

// Results that do not fill all registers, [n_tokens][kSliceRows], to their rows of y.
static void copy_out(const float* sums, int64_t n_tokens, int64_t n_rows, float* y,
                     int64_t y_stride) {
  for (int64_t t = 0; t < n_tokens; ++t) {
    memcpy(y + t * y_stride, sums + t * kSliceRows, static_cast<size_t>(n_rows) * sizeof(float));
  }
}

static void add_bias(const float* bias, int64_t n_tokens, int64_t n_rows, float* y,
                     int64_t y_stride) {
  for (int64_t t = 0; t < n_tokens; ++t) add(y + t * y_stride, bias, n_rows);
}

// One slice with all tokens.
static void multiply_slice(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows,
                           const std::byte* packs, const uint16_t* rows) {
  constexpr int64_t kTokens = 2 * kTileUnitRows;
  const size_t pack = bf16_pack_bytes(chunk.cols);
  const int64_t n_steps = chunk.cols / 32;
  alignas(64) float sums[kTokens * kSliceRows];
  float* first = chunk.y + first_row - chunk.y_row;
  for (int64_t t = 0; t < chunk.n_tokens; t += kTokens, packs += 2 * pack) {
    const int64_t n = least(chunk.n_tokens - t, kTokens);
    float* y = first + t * chunk.y_stride;
    const bool whole = n_rows == kSliceRows && n % kTileUnitRows == 0;
    float* to = whole ? y : sums;
    const int64_t stride = whole ? chunk.y_stride : kSliceRows;
    if (n > kTileUnitRows) {
      multiply_packs<2>(packs, pack, rows, n_steps, to, stride);
    } else {
      multiply_packs<1>(packs, pack, rows, n_steps, to, stride);
    }
    if (!whole) copy_out(sums, n, n_rows, y, chunk.y_stride);
    if (chunk.bias != nullptr) add_bias(chunk.bias + first_row, n, n_rows, y, chunk.y_stride);
  }
}

static size_t bf16_scratch(int64_t cols) { return Rounded(nullptr, cols).size; }

static void bf16_multiply(const MatmulChunk& chunk, const std::byte* packs) {
  const Rounded work(chunk.scratch, chunk.cols);
  const TileUnit unit;
  const int64_t end = chunk.first_row + chunk.n_rows;
  for (int64_t r = chunk.first_row; r < end; r += kSliceRows) {
    const int64_t n = least(end - r, kSliceRows);
    round_weights(chunk, r, n, work);
    multiply_slice(chunk, r, n, packs, work.rows);
  }
}

// ---- what a gate leaves ----

static size_t bf16_gated_scratch(int64_t cols, int64_t n_tokens) {
  return GatedWork(nullptr, bf16_scratch(cols), n_tokens).size;
}

static void bf16_gated_group(const GatedChunk& chunk, const std::byte* packs) {
  static_assert(kGatedRows == 32);
  const int64_t n_tokens = chunk.gate.n_tokens;
  const float* values =
      multiply_gate(chunk, GatedWork(chunk.scratch, bf16_scratch(chunk.gate.cols), n_tokens),
                    [&](const MatmulChunk& product) { bf16_multiply(product, packs); });
  const size_t bytes = bf16_pack_bytes(chunk.cols);
  std::byte* step = chunk.packs + chunk.gate.first_row / kGatedRows * kTileUnitBytes;
  for (int64_t t = 0; t < round_up(n_tokens, kTileUnitRows); ++t) {
    std::byte* dst = step + static_cast<size_t>(t / kTileUnitRows) * bytes + t % kTileUnitRows * 64;
    if (t < n_tokens) {
      round_step(values + t * kGatedRows, dst);
    } else {
      memset(dst, 0, 64);
    }
  }
}

static void bf16_end_pack(int64_t /*cols*/, float /*least_error*/, std::byte* /*pack*/) {}

const PackedProducts kBf16Products = {
    .tokens = kTileUnitRows,
    .pack_bytes = bf16_pack_bytes,
    .pack = bf16_pack,
    .rows = kSliceRows,
    .scratch = bf16_scratch,
    .multiply = bf16_multiply,
    .gated_scratch = bf16_gated_scratch,
    .gated_group = bf16_gated_group,
    .end_pack = bf16_end_pack,
};

}  // namespace kve::KVE_ISA

#endif
