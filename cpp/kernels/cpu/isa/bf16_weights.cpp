#include "kernels/cpu/isa/bf16_weights.h"

#if defined(KVE_ISA_AMX)

#include <string.h>

#include "kernels/cpu/isa/slice.h"
#include "simd/words.h"

namespace kve::KVE_ISA {

static_assert(kFirstSteps % kUnpackGroups == 0 && kRoundedRows == kSliceRows);

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

// Words j of kWords of a group of 16 rows: columns 4j.. of it by `low` and columns 16 + 4j.. by
// `high`, from words j and 4 + j of its bytes.
template <int kWords, class Scales, class Word>
[[gnu::always_inline]] static inline void round_words(int first_word, const Scales& low,
                                                      const Scales& high, const Word& word,
                                                      uint16_t* dst) {
  KVE_UNROLL(4)
  for (int i = 0; i < kWords; ++i) {
    const int j = first_word + i;
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
    round_words<4>(0, low, high, [&](int j) { return load_i32(codes + j * kSliceRows * 4); }, dst);
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

static void round_file_rows(const SlicePart& part, std::byte* scratch, uint16_t* dst) {
  const MatmulChunk& chunk = *part.chunk;
  const int64_t n = part.n_steps;
  const Slice slice(scratch, 32 * n);
  const bool halves = !one_scale(chunk.format->type);
  unpack_slice(chunk, {part.first_row, part.n_rows, part.first_step, n}, halves, slice);
  if (halves) {
    chunk.format->has_min ? round_slice<true, true>(chunk, slice, n, dst)
                          : round_slice<true, false>(chunk, slice, n, dst);
  } else {
    chunk.format->has_min ? round_slice<false, true>(chunk, slice, n, dst)
                          : round_slice<false, false>(chunk, slice, n, dst);
  }
}

// ---- from tiles, as they lie ----

// A unit is a word of a group of 16 rows; the first one of a group begins the group.
constexpr int64_t kGroupUnits = 4;
constexpr int64_t kStepUnits = 2 * kGroupUnits;

template <class Type>
using TypeScaling =
    Scaling<Type::Scales::kHasOffsets, Type::Codes::kSmall ? Type::Codes::kZero : kDotBias>;

template <class Type>
static void begin_group(Rounding& rounding, int64_t step, int64_t vector) {
  using Codes = typename Type::Codes;
  using Scales = typename Type::Scales;
  rounding.to = rounding.dst + (vector * rounding.n_steps + step) * kStepNumbers;
  const int64_t group = rounding.first_step + step;
  const int64_t before = group / kBlockGroups * kBlockGroups;
  const BlockView block =
      view_block<Type>(const_cast<std::byte*>(rounding.tiles[vector]) +
                           group / kBlockGroups * block_bytes<Type>(kBlockGroups),
                       least(rounding.n_groups - before, kBlockGroups));
  const int64_t g = group - before;
  const F32 minimum = Scales::kMin ? Scales::minimum(block, g, 0) : zero();
  auto* scaling = reinterpret_cast<TypeScaling<Type>*>(rounding.scaling);
  for (int part = 0; part < Scales::kParts; ++part) {
    scaling[part] = TypeScaling<Type>(Scales::scale(block, g * Scales::kParts + part, 0), minimum);
  }
  rounding.codes = block.codes + g / Codes::kGroups * Codes::kLines * kLineBytes;
  rounding.part = static_cast<int>(g % Codes::kGroups);
}

template <class Type>
static void round_unit(Rounding& rounding, int64_t unit) {
  static_assert(kTileRows == kLanes);
  const auto word = static_cast<int>(static_cast<uint64_t>(unit) % kGroupUnits);
  const int64_t vector = static_cast<int64_t>(static_cast<uint64_t>(unit) / kGroupUnits % 2);
  if (rounding.tiles[vector] == nullptr) {
    uint16_t* to = rounding.dst + (vector * rounding.n_steps + unit / kStepUnits) * kStepNumbers;
    memset(to + word * 8 * kLanes, 0, kStepNumbers / kGroupUnits * sizeof(uint16_t));
    return;
  }
  if (word == 0) begin_group<Type>(rounding, unit / kStepUnits, vector);
  const auto* scaling = reinterpret_cast<const TypeScaling<Type>*>(rounding.scaling);
  round_words<1>(
      word, scaling[0], scaling[Type::Scales::kParts - 1],
      [&](int j) { return Type::Codes::word(rounding.codes, 0, rounding.part, j); }, rounding.to);
}

// ---- both ----

size_t rounding_scratch(int64_t cols) { return Slice(nullptr, cols).size; }

Rounding start_rounding(const SlicePart& part, std::byte* scratch, uint16_t* dst) {
  Rounding rounding = {};
  const MatmulChunk& chunk = *part.chunk;
  if (chunk.tiles == nullptr) {
    round_file_rows(part, scratch, dst);
    return rounding;
  }
  const auto bytes = static_cast<int64_t>(interleaved_tile_bytes(chunk.format->type, chunk.cols));
  for (int64_t v = 0; v < kMatVectors; ++v) {
    if (v * kLanes >= part.n_rows) continue;
    rounding.tiles[v] = chunk.tiles + (part.first_row / kTileRows + v) * bytes;
  }
  rounding.n_groups = chunk.cols / 32;
  rounding.first_step = part.first_step;
  rounding.dst = dst;
  rounding.scaling = scratch;
  rounding.n_steps = part.n_steps;
  rounding.n_units = part.n_steps * kStepUnits;
  with_interleaved(chunk.format->type,
                   [&](auto kind) { rounding.round = round_unit<decltype(kind)>; });
  return rounding;
}

}  // namespace kve::KVE_ISA

#endif
