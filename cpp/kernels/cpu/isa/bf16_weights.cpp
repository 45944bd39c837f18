#include "kernels/cpu/isa/bf16_weights.h"

#if defined(KVE_ISA_AMX)

#include <string.h>

#include "kernels/cpu/isa/slice.h"
#include "simd/words.h"

namespace kve::KVE_ISA {

static_assert(kFirstSteps % kUnpackGroups == 0 && kMatVectors == 2);

namespace {

// What turns bytes, kZero more than the codes of a group or of half a group, into weights.
template <bool kOffsets, int kZero>
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

  // Of byte kByte of the lanes of a word.
  template <int kByte>
  F32 weight(I32 word) const {
    // The bits of the float 256 + byte: its mantissa begins at bit 22.
    const I32 moved =
        kByte < 2 ? shift_left(word, 15 - 8 * kByte) : shift_right(word, 8 * kByte - 15);
    const F32 code = as_f32(blend_bits(set_i32(0x7f8000), moved, set_i32(0x43800000)));
    return kOffsets ? fma(code, scale, offset) : fma(code - set(kBias), scale, offset);
  }

 private:
  static constexpr float kBias = 256.0f + kZero;
};

}  // namespace

// A group of 16 rows: columns 4j.. of it by `low` and columns 16 + 4j.. by `high`, from words j and
// 4 + j of its bytes.
template <class Low, class Word>
[[gnu::always_inline]] static inline void round_group(const Low& low, const Low& high,
                                                      const Word& word, uint16_t* dst) {
  KVE_UNROLL(4)
  for (int j = 0; j < 4; ++j) {
    const I32 first = word(j);
    const I32 second = word(4 + j);
    const auto put = [&]<int kByte>() {
      store_i32(
          dst + (4 * j + kByte) * 2 * kLanes,
          round_bf16_pair(low.template weight<kByte>(first), high.template weight<kByte>(second)));
    };
    put.template operator()<0>();
    put.template operator()<1>();
    put.template operator()<2>();
    put.template operator()<3>();
  }
}

// ---- from the file's layout, unpacked ----

template <bool kHalves, bool kMin, bool kOffsets>
static void round_rows(const Slice& slice, int64_t n_groups, int v, uint16_t* dst) {
  constexpr int kParts = kHalves ? 2 : 1;
  for (int64_t g = 0; g < n_groups; ++g, dst += kStepNumbers) {
    const auto scaling = [&](int64_t part) {
      const int64_t place = (g * kParts + part) * kSliceRows + v * kLanes;
      return Scaling<kOffsets, kDotBias>(load(slice.scales + place),
                                         kMin ? load(slice.minima + place) : zero());
    };
    const auto low = scaling(0);
    const auto high = kHalves ? scaling(1) : low;
    const int8_t* codes = slice.codes + (8 * g * kSliceRows + v * kLanes) * 4;
    round_group(low, high, [&](int j) { return load_i32(codes + j * kSliceRows * 4); }, dst);
  }
}

template <bool kHalves, bool kMin>
static void round_slice(const MatmulChunk& chunk, const Slice& slice, int64_t n_groups,
                        uint16_t* dst) {
  const bool offsets = has_offsets(chunk.format->type);
  for (int v = 0; v < kMatVectors; ++v, dst += n_groups * kStepNumbers) {
    if (offsets) {
      round_rows<kHalves, kMin, true>(slice, n_groups, v, dst);
    } else {
      round_rows<kHalves, kMin, false>(slice, n_groups, v, dst);
    }
  }
}

// ---- from tiles, as they lie ----

template <class Type>
static void round_block(const BlockView& block, int from, int64_t n_groups, uint16_t* dst) {
  using Codes = typename Type::Codes;
  using Scales = typename Type::Scales;
  using Weights = Scaling<Scales::kHasOffsets, Codes::kSmall ? Codes::kZero : kDotBias>;
  const std::byte* step = block.codes;
  for (int64_t first = 0; first < n_groups; first += Codes::kGroups) {
    KVE_UNROLL(8)
    for (int g = 0; g < Codes::kGroups; ++g, dst += kStepNumbers) {
      const int64_t group = first + g;
      const auto scaling = [&](int part) {
        return Weights(Scales::scale(block, group * Scales::kParts + part, from),
                       Scales::minimum(block, group, from));
      };
      const Weights low = scaling(0);
      const Weights high = Scales::kParts == 2 ? scaling(1) : low;
      round_group(low, high, [&](int j) { return Codes::word(step, from, g, j); }, dst);
    }
    step += Codes::kLines * kLineBytes;
  }
}

template <class Type>
static void round_tiles(const MatmulChunk& chunk, const SliceOf& part, uint16_t* dst) {
  const int64_t end = round_up(part.first_row + part.n_rows, kTileRows);
  for (int v = 0; v < kMatVectors; ++v) {
    const int64_t row = part.first_row + v * kLanes;
    if (row >= end) {
      memset(dst, 0, static_cast<size_t>(part.n_groups * kStepNumbers) * sizeof(uint16_t));
      continue;
    }
    std::byte* data = const_cast<std::byte*>(chunk.tiles) +
                      row / kTileRows * tile_bytes<Type>(chunk.cols) +
                      part.first_group / kBlockGroups * block_bytes<Type>(kBlockGroups);
    const int from = static_cast<int>(row % kTileRows / kLanes);
    for (int64_t g = 0; g < part.n_groups; g += kBlockGroups) {
      const int64_t n = least(part.n_groups - g, kBlockGroups);
      round_block<Type>(view_block<Type>(data, n), from, n, dst);
      data += block_bytes<Type>(n);
      dst += n * kStepNumbers;
    }
  }
}

size_t round_weights_scratch(int64_t cols) { return Slice(nullptr, cols).size; }

void round_weights(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows, int64_t first_step,
                   int64_t n_steps, std::byte* scratch, uint16_t* dst) {
  const SliceOf part = {first_row, n_rows, first_step, n_steps};
  if (chunk.tiles != nullptr) {
    with_interleaved(chunk.format->type,
                     [&](auto kind) { round_tiles<decltype(kind)>(chunk, part, dst); });
    return;
  }
  const Slice slice(scratch, 32 * n_steps);
  const bool halves = !one_scale(chunk.format->type);
  unpack_slice(chunk, part, halves, slice);
  if (halves) {
    chunk.format->has_min ? round_slice<true, true>(chunk, slice, n_steps, dst)
                          : round_slice<true, false>(chunk, slice, n_steps, dst);
  } else {
    chunk.format->has_min ? round_slice<false, true>(chunk, slice, n_steps, dst)
                          : round_slice<false, false>(chunk, slice, n_steps, dst);
  }
}

}  // namespace kve::KVE_ISA

#endif
