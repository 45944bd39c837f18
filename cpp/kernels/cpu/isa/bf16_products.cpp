// Many inputs against quantized weights by the tile unit (simd/amx.h): inputs and weights are
// rounded to bf16, 8 bits of mantissa each, and sums are floats that stay in its registers. That is
// four times the arithmetic of int8 dot products (on Emerald Rapids), with less error, and neither
// scales nor second planes are left to be multiplied with.
#include "kernels/cpu/isa/isa.h"

#if defined(KVE_ISA_AMX)

#include <string.h>

#include "kernels/cpu/isa/activations.h"
#include "kernels/cpu/isa/bf16_weights.h"
#include "simd/amx.h"
#include "simd/words.h"

namespace kve::KVE_ISA {
namespace {

static_assert(kRoundedRows == 2 * kTileUnitRows && kLanes == kTileUnitRows);

// Columns of weights that meet all inputs before the next ones do: 32 rows of them stay in the
// first cache meanwhile. A multiple of what a part begins at, unless it is all.
constexpr int64_t kBlockSteps = 16;
constexpr int64_t kMostSteps = 20;
static_assert(kBlockSteps % kFirstSteps == 0);
// Blocks of columns of all rows of a chunk that come before the next columns, so that inputs are
// read from the second cache.
constexpr int64_t kNearBlocks = 4;
constexpr int64_t kMostRows = 256;  // of a chunk

// Inputs that a thread takes through all rows: they and what a gate leaves of them stay in its
// second cache, while the other threads have other inputs. Weights are rounded for each such block.
constexpr int64_t kMostInputs = 256;
constexpr int64_t kPairInputs = 2 * kTileUnitRows;  // that are multiplied together

struct ProductWork {
  uint16_t* rows[2];  // of a part and of the next one
  std::byte* rounding;
  float* sums;  // that do not go to the results at once: [slices][inputs][kRoundedRows]
  size_t size;

  ProductWork(std::byte* data, int64_t n_sums) {
    Carver carver(data);
    for (uint16_t*& part : rows) part = carver.take<uint16_t>(2 * kMostSteps * kStepNumbers);
    rounding = carver.take<std::byte>(static_cast<int64_t>(rounding_scratch(32 * kMostSteps)));
    sums = carver.take<float>(n_sums * kRoundedRows);
    size = carver.size();
  }
};

// Packed inputs of a product.
struct Inputs {
  const std::byte* packs;
  size_t pack_bytes;
  int64_t n;
};

// A part of the weights, and sums that it adds something to: 32 of each input, `stride` apart.
struct SumPart {
  SlicePart weights;
  float* sums;
  int64_t stride;
};

int64_t block_steps(int64_t n_steps) { return n_steps > kMostSteps ? kBlockSteps : n_steps; }
int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

}  // namespace

// ---- packs: [steps][16 inputs][16 pairs] ----

// A line more than it needs, so that the same columns of all packs do not lie in the same few sets
// of a cache.
static size_t bf16_pack_bytes(int64_t cols) {
  return static_cast<size_t>(cols / 32 * kStepNumbers) * sizeof(uint16_t) + 64;
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

// ---- products ----

namespace {

// Some columns of packs and of a slice of weights.
struct Columns {
  const std::byte* packs;  // of the first pack, at the first column
  size_t pack_bytes;
  const uint16_t* rows;
  int64_t n_steps;
  bool first;  // else the sums of columns before are there already
};

// The rounding of a part, in equal shares.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const Rounding& rounding, int64_t n_shares)
      : rounding_(rounding), share_(divide_up(rounding.n_units, n_shares)) {}

  void round_share() { round(least(next_ + share_, rounding_.n_units)); }
  void round_rest() { round(rounding_.n_units); }

 private:
  void round(int64_t end) {
    for (; next_ < end; ++next_) rounding_.round(rounding_, next_);
  }

  Rounding rounding_ = {};
  int64_t share_ = 0;
  int64_t next_ = 0;
};

}  // namespace

// kPacks packs times 32 rows: sums [input][row]. Of both, weights are what stays in the first
// cache. Each step leaves time for a share of what comes next.
template <int kPacks>
static void multiply_packs(const Columns& columns, float* sums, int64_t sum_stride, Ahead* ahead) {
  const int64_t stride = sum_stride * static_cast<int64_t>(sizeof(float));
  float* second = sums + kTileUnitRows * sum_stride;
  if (columns.first) {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
  } else {
    load_tile<0>(sums, stride);
    load_tile<1>(sums + kTileUnitRows, stride);
    if constexpr (kPacks == 2) {
      load_tile<2>(second, stride);
      load_tile<3>(second + kTileUnitRows, stride);
    }
  }
  const std::byte* a = columns.packs;
  const auto* b = reinterpret_cast<const std::byte*>(columns.rows);
  const int64_t next_rows = columns.n_steps * kTileUnitBytes;
  const size_t next_pack = columns.pack_bytes;
  for (int64_t i = columns.n_steps; i > 0; --i, a += kTileUnitBytes, b += kTileUnitBytes) {
    stream_tile<4>(a, 64);
    load_tile<6>(b, 64);
    dot_bf16<0, 4, 6>();
    load_tile<7>(b + next_rows, 64);
    dot_bf16<1, 4, 7>();
    if constexpr (kPacks == 2) {
      stream_tile<5>(a + next_pack, 64);
      dot_bf16<2, 5, 6>();
      dot_bf16<3, 5, 7>();
    }
    ahead->round_share();
  }
  store_tile<0>(sums, stride);
  store_tile<1>(sums + kTileUnitRows, stride);
  if constexpr (kPacks == 2) {
    store_tile<2>(second, stride);
    store_tile<3>(second + kTileUnitRows, stride);
  }
}

// Sums of n inputs and n_rows of a slice, plus bias, to results.
static void write_sums(const float* sums, const float* bias, int64_t n, int64_t n_rows, float* y,
                       int64_t y_stride) {
  for (int64_t t = 0; t < n; ++t, sums += kRoundedRows, y += y_stride) {
    for (int64_t r = 0; r < n_rows; r += kLanes) {
      const int64_t some = least(n_rows - r, kLanes);
      const F32 more = bias == nullptr ? zero() : load_n(bias + r, some);
      store_n(y + r, load(sums + r) + more, some);
    }
  }
}

// All inputs with a part of the weights that is rounded already.
static void multiply_part(const Inputs& inputs, const SumPart& part, const uint16_t* rows,
                          Ahead* ahead) {
  const int64_t step = part.weights.first_step;
  for (int64_t t = 0; t < inputs.n; t += kPairInputs) {
    const auto pack = static_cast<size_t>(t / kTileUnitRows) * inputs.pack_bytes;
    const Columns columns = {.packs = inputs.packs + pack + step * kTileUnitBytes,
                             .pack_bytes = inputs.pack_bytes,
                             .rows = rows,
                             .n_steps = part.weights.n_steps,
                             .first = step == 0};
    float* sums = part.sums + t * part.stride;
    inputs.n - t > kTileUnitRows ? multiply_packs<2>(columns, sums, part.stride, ahead)
                                 : multiply_packs<1>(columns, sums, part.stride, ahead);
  }
}

// Parts part_at(0) .. part_at(n - 1), each of which is rounded while the one before it meets its
// inputs; done(i) after each.
template <class PartAt, class Done>
static void multiply_parts(const Inputs& inputs, const ProductWork& work, int64_t n,
                           const PartAt& part_at, const Done& done) {
  const TileUnit unit;
  SumPart part = part_at(0);
  Ahead(start_rounding(part.weights, work.rounding, work.rows[0]), 1).round_rest();
  for (int64_t i = 0; i < n; ++i) {
    Ahead ahead;
    const SumPart next = i + 1 < n ? part_at(i + 1) : SumPart{};
    if (i + 1 < n) {
      const int64_t shares = divide_up(inputs.n, kPairInputs) * part.weights.n_steps;
      ahead = Ahead(start_rounding(next.weights, work.rounding, work.rows[(i + 1) % 2]), shares);
    }
    multiply_part(inputs, part, work.rows[i % 2], &ahead);
    ahead.round_rest();
    done(i);
    part = next;
  }
}

// ---- the product of a chunk ----

namespace {

// The parts of a chunk: blocks of columns, in turn of all slices of rows, kNearBlocks at a time.
class ChunkParts {
 public:
  ChunkParts(const MatmulChunk& chunk, const ProductWork& work)
      : chunk_(chunk),
        work_(work),
        n_steps_(chunk.cols / 32),
        block_(block_steps(n_steps_)),
        n_blocks_(divide_up(n_steps_, block_)),
        n_slices_(divide_up(chunk.n_rows, kRoundedRows)) {}

  int64_t size() const { return n_slices_ * n_blocks_; }
  SumPart at(int64_t i) const {
    const Place place = place_of(i);
    const int64_t step = place.block * block_;
    const int64_t row = place.slice * kRoundedRows;
    const bool direct = is_direct(place.slice);
    return {{&chunk_, chunk_.first_row + row, rows_of(place.slice), step,
             least(n_steps_ - step, block_)},
            direct ? results(place.slice) : sums_of(place.slice),
            direct ? chunk_.y_stride : kRoundedRows};
  }
  // After part i: sums that are whole and not where they belong.
  void finish(int64_t i) const {
    const Place place = place_of(i);
    if (place.block + 1 < n_blocks_ || is_direct(place.slice)) return;
    const int64_t row = chunk_.first_row + place.slice * kRoundedRows;
    write_sums(sums_of(place.slice), chunk_.bias == nullptr ? nullptr : chunk_.bias + row,
               chunk_.n_tokens, rows_of(place.slice), results(place.slice), chunk_.y_stride);
  }

 private:
  struct Place {
    int64_t slice;
    int64_t block;
  };
  Place place_of(int64_t i) const {
    const int64_t first = i / (n_slices_ * kNearBlocks) * kNearBlocks;
    const int64_t near = least(n_blocks_ - first, kNearBlocks);
    const int64_t within = i - first * n_slices_;
    return {within / near, first + within % near};
  }
  int64_t rows_of(int64_t slice) const {
    return least(chunk_.n_rows - slice * kRoundedRows, kRoundedRows);
  }
  // Registers are stored as a whole.
  bool is_direct(int64_t slice) const {
    return chunk_.bias == nullptr && rows_of(slice) == kRoundedRows &&
           chunk_.n_tokens % kTileUnitRows == 0;
  }
  float* results(int64_t slice) const {
    return chunk_.y + chunk_.first_row + slice * kRoundedRows - chunk_.y_row;
  }
  float* sums_of(int64_t slice) const {
    return work_.sums + slice * round_up(chunk_.n_tokens, kPairInputs) * kRoundedRows;
  }

  const MatmulChunk& chunk_;
  const ProductWork& work_;
  int64_t n_steps_;
  int64_t block_;
  int64_t n_blocks_;
  int64_t n_slices_;
};

int64_t most_sums(int64_t n_inputs) {
  return kMostRows / kRoundedRows * round_up(n_inputs, kPairInputs);
}

}  // namespace

static size_t bf16_scratch(int64_t /*cols*/, int64_t n_inputs) {
  return ProductWork(nullptr, most_sums(n_inputs)).size;
}

static void bf16_multiply(const MatmulChunk& chunk, const std::byte* packs) {
  const ProductWork work(chunk.scratch, most_sums(chunk.n_tokens));
  const ChunkParts parts(chunk, work);
  multiply_parts(
      {packs, bf16_pack_bytes(chunk.cols), chunk.n_tokens}, work, parts.size(),
      [&](int64_t i) { return parts.at(i); }, [&](int64_t i) { parts.finish(i); });
}

// ---- what a gate leaves ----

namespace {

// A few units in the last place off, without a division.
F32 sigmoid_by_inverse(F32 x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kMost = 126;  // the inverse stays finite; NaN is kept
  const F32 sum = set(1.0f) + exp2(min(set(kMost), x * set(-kLog2E)));
  const F32 rough = inverse_rough(sum);
  return rough * (set(2.0f) - sum * rough);
}
struct FastSilu {
  F32 operator()(F32 x) const { return x * sigmoid_by_inverse(x); }
};
struct FastGeluTanh {
  F32 operator()(F32 x) const { return x * sigmoid_by_inverse(gelu_tanh_slope(x)); }
};

}  // namespace

namespace {

// Sums of a slice of gate and of up, and a product's memory.
struct GatedSums {
  float* gate;  // [inputs][kGatedRows]
  float* up;
  std::byte* product;
  size_t size;

  GatedSums(std::byte* data, int64_t n_inputs) {
    const int64_t n = round_up(n_inputs, kPairInputs) * kGatedRows;
    Carver carver(data);
    gate = carver.take<float>(n);
    up = carver.take<float>(n);
    product = carver.take<std::byte>(static_cast<int64_t>(ProductWork(nullptr, 0).size));
    size = carver.size();
  }
};

}  // namespace

// What 32 rows of gate and up become, of n inputs, as a step of packs. Biases may be null.
template <class Activation>
static void round_gated(const Activation& activate, const GatedSums& sums, const float* gate_bias,
                        const float* up_bias, int64_t n, size_t pack_bytes, std::byte* dst) {
  const auto bias = [](const float* of, int64_t r) {
    return of == nullptr ? zero() : load(of + r);
  };
  const F32 gate_biases[] = {bias(gate_bias, 0), bias(gate_bias, kLanes)};
  const F32 up_biases[] = {bias(up_bias, 0), bias(up_bias, kLanes)};
  for (int64_t t = 0; t < round_up(n, kTileUnitRows); ++t) {
    std::byte* to =
        dst + static_cast<size_t>(t / kTileUnitRows) * pack_bytes + t % kTileUnitRows * 64;
    const auto value = [&](int half) {
      const int64_t at = t * kGatedRows + half * kLanes;
      return activate(load(sums.gate + at) + gate_biases[half]) *
             (load(sums.up + at) + up_biases[half]);
    };
    if (t < n) {
      store_i32(to, round_bf16_pair(value(0), value(1)));
    } else {
      memset(to, 0, 64);
    }
  }
}

static size_t bf16_gated_scratch(int64_t /*cols*/, int64_t /*n_rows*/, int64_t n_tokens) {
  return GatedSums(nullptr, n_tokens).size;
}

static void bf16_gated_group(const GatedChunk& chunk, const std::byte* packs) {
  static_assert(kGatedRows == kRoundedRows);
  const MatmulChunk& gate = chunk.gate;
  const GatedSums work(chunk.scratch, gate.n_tokens);
  const int64_t n_steps = gate.cols / 32;
  const int64_t block = block_steps(n_steps);
  const int64_t n_blocks = divide_up(n_steps, block);
  // Blocks of columns of a slice of gate, of up, of the next slice of gate.
  const auto part_at = [&](int64_t i) {
    const bool is_gate = i / n_blocks % 2 == 0;
    const int64_t step = i % n_blocks * block;
    return SumPart{{is_gate ? &gate : &chunk.up, gate.first_row + i / (2 * n_blocks) * kGatedRows,
                    kGatedRows, step, least(n_steps - step, block)},
                   is_gate ? work.gate : work.up,
                   kGatedRows};
  };
  const size_t bytes = bf16_pack_bytes(chunk.cols);
  const auto done = [&](int64_t i) {
    if ((i + 1) % (2 * n_blocks) != 0) return;
    const int64_t row = gate.first_row + i / (2 * n_blocks) * kGatedRows;
    const auto bias = [&](const float* of) { return of == nullptr ? nullptr : of + row; };
    with_activation<FastSilu, FastGeluTanh>(chunk.activation, [&](auto activate) {
      round_gated(activate, work, bias(gate.bias), bias(chunk.up.bias), gate.n_tokens, bytes,
                  chunk.packs + row / kGatedRows * kTileUnitBytes);
    });
  };
  multiply_parts({packs, bf16_pack_bytes(gate.cols), gate.n_tokens}, ProductWork(work.product, 0),
                 gate.n_rows / kGatedRows * 2 * n_blocks, part_at, done);
}

const PackedProducts kBf16Products = {
    .tokens = kTileUnitRows,
    .pack_bytes = bf16_pack_bytes,
    .pack = bf16_pack,
    .rows = kRoundedRows,
    .most_rows = kMostRows,
    .most_inputs = kMostInputs,
    .scratch = bf16_scratch,
    .multiply = bf16_multiply,
    .gated_scratch = bf16_gated_scratch,
    .gated_group = bf16_gated_group,
    .end_pack = nullptr,
};

}  // namespace kve::KVE_ISA

#endif
