// Many inputs against quantized weights by the tile unit (simd/amx.h): inputs and weights are
// rounded to bf16, 8 bits of mantissa each, and sums are floats that stay in its registers. That is
// four times the arithmetic of int8 dot products (on Emerald Rapids), with less error, and neither
// scales nor second planes are left to be multiplied with.
#include "kernels/cpu/isa/isa.h"

#if defined(KVE_ISA_AMX)

#include <string.h>

#include "kernels/cpu/isa/activations.h"
#include "kernels/cpu/isa/bf16_weights.h"
#include "kernels/cpu/isa/gated_work.h"
#include "simd/amx.h"
#include "simd/words.h"

namespace kve::KVE_ISA {
namespace {

constexpr int64_t kSliceRows = 2 * kTileUnitRows;  // that are rounded together
static_assert(kLanes == kTileUnitRows);

// Columns of weights that are rounded at a time: 32 rows of them stay in the first cache while all
// inputs pass. A multiple of what round_weights() begins at, unless it is all.
constexpr int64_t kBlockSteps = 16;
constexpr int64_t kMostSteps = 20;
static_assert(kBlockSteps % kFirstSteps == 0);
constexpr int64_t kMostRows = 256;  // that are rounded before any input is read

// Inputs that a thread takes through all rows: they and what a gate leaves of them stay in its
// second cache, while the other threads have other inputs. Weights are rounded for each such block.
constexpr int64_t kMostInputs = 256;

// Inputs that meet all of those rows while they are in the second cache, and two packs of them.
constexpr int64_t kNearInputs = 128;
constexpr int64_t kPairInputs = 2 * kTileUnitRows;

struct ProductWork {
  uint16_t* rows;  // [kMostRows / 16][steps][16 pairs][16 rows][2]
  // Sums of near inputs with a slice of rows, [kNearInputs][kSliceRows]; where columns come in
  // several blocks, of all slices and inputs: [slices][inputs][kSliceRows].
  float* sums;
  std::byte* rounding;
  size_t size;

  ProductWork(std::byte* data, int64_t cols, int64_t n_inputs) {
    const int64_t many = kMostRows * round_up(n_inputs, kPairInputs);
    Carver carver(data);
    rows = carver.take<uint16_t>(kMostRows / kTileUnitRows * kMostSteps * kStepNumbers);
    sums = carver.take<float>(cols > 32 * kMostSteps ? many : kNearInputs * kSliceRows);
    rounding = carver.take<std::byte>(static_cast<int64_t>(round_weights_scratch(32 * kMostSteps)));
    size = carver.size();
  }
};

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

}  // namespace

// kPacks packs times 32 rows: sums [input][row]. Of both, weights are what stays in the first
// cache.
template <int kPacks>
static void multiply_packs(const Columns& columns, float* sums, int64_t sum_stride) {
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
  for (int64_t t = 0; t < n; ++t, sums += kSliceRows, y += y_stride) {
    for (int64_t r = 0; r < n_rows; r += kLanes) {
      const int64_t some = least(n_rows - r, kLanes);
      const F32 more = bias == nullptr ? zero() : load_n(bias + r, some);
      store_n(y + r, load(sums + r) + more, some);
    }
  }
}

namespace {

// A product of some rows, kMostRows at the most, with all inputs: columns block by block.
class RowsProduct {
 public:
  RowsProduct(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows, const std::byte* packs,
              const ProductWork& work)
      : chunk_(chunk),
        first_row_(first_row),
        n_rows_(n_rows),
        packs_(packs),
        work_(work),
        n_steps_(chunk.cols / 32) {}

  void multiply() const {
    const int64_t block = n_steps_ > kMostSteps ? kBlockSteps : n_steps_;
    for (int64_t step = 0; step < n_steps_; step += block) {
      multiply_columns(step, least(n_steps_ - step, block));
    }
  }

 private:
  void multiply_columns(int64_t step, int64_t n_steps) const {
    const int64_t numbers = 2 * n_steps * kStepNumbers;  // of a slice
    for (int64_t r = 0; r < n_rows_; r += kSliceRows) {
      round_weights(chunk_, first_row_ + r, least(n_rows_ - r, kSliceRows), step, n_steps,
                    work_.rounding, work_.rows + r / kSliceRows * numbers);
    }
    const size_t pack = bf16_pack_bytes(chunk_.cols);
    Columns columns = {nullptr, pack, nullptr, n_steps, step == 0};
    for (int64_t near = 0; near < chunk_.n_tokens; near += kNearInputs) {
      const int64_t end = least(near + kNearInputs, chunk_.n_tokens);
      for (int64_t r = 0; r < n_rows_; r += kSliceRows) {
        columns.rows = work_.rows + r / kSliceRows * numbers;
        multiply_near(columns, step, r, near, end);
      }
    }
  }

  // The inputs from `near` on with the slice from row r on.
  void multiply_near(Columns columns, int64_t step, int64_t r, int64_t near, int64_t end) const {
    const int64_t row = first_row_ + r;
    float* y = chunk_.y + near * chunk_.y_stride + row - chunk_.y_row;
    const bool direct = can_be_direct(r, end - near);
    float* sums = direct ? y : sums_of(r, near);
    const int64_t stride = direct ? chunk_.y_stride : kSliceRows;
    for (int64_t t = near; t < end; t += kPairInputs) {
      columns.packs = packs_ + static_cast<size_t>(t / kTileUnitRows) * columns.pack_bytes +
                      step * kTileUnitBytes;
      multiply_pair(columns, end - t, sums + (t - near) * stride, stride);
    }
    if (direct || step + columns.n_steps < n_steps_) return;
    write_sums(sums, chunk_.bias == nullptr ? nullptr : chunk_.bias + row, end - near,
               least(n_rows_ - r, kSliceRows), y, chunk_.y_stride);
  }

  // Registers are stored as a whole.
  bool can_be_direct(int64_t r, int64_t n_inputs) const {
    return chunk_.bias == nullptr && n_rows_ - r >= kSliceRows && n_inputs % kTileUnitRows == 0;
  }
  float* sums_of(int64_t r, int64_t near) const {
    if (n_steps_ <= kMostSteps) return work_.sums;
    const int64_t slice = r / kSliceRows;
    return work_.sums + (slice * round_up(chunk_.n_tokens, kPairInputs) + near) * kSliceRows;
  }

  static void multiply_pair(const Columns& columns, int64_t n, float* sums, int64_t stride) {
    n > kTileUnitRows ? multiply_packs<2>(columns, sums, stride)
                      : multiply_packs<1>(columns, sums, stride);
  }

  const MatmulChunk& chunk_;
  int64_t first_row_;
  int64_t n_rows_;
  const std::byte* packs_;
  const ProductWork& work_;
  int64_t n_steps_;
};

}  // namespace

static size_t bf16_scratch(int64_t cols, int64_t n_inputs) {
  return ProductWork(nullptr, cols, n_inputs).size;
}

static void bf16_multiply(const MatmulChunk& chunk, const std::byte* packs) {
  const ProductWork work(chunk.scratch, chunk.cols, chunk.n_tokens);
  const TileUnit unit;
  const int64_t end = chunk.first_row + chunk.n_rows;
  for (int64_t r = chunk.first_row; r < end; r += kMostRows) {
    RowsProduct(chunk, r, least(end - r, kMostRows), packs, work).multiply();
  }
}

// ---- what a gate leaves ----

static size_t bf16_gated_scratch(int64_t cols, int64_t n_rows, int64_t n_tokens) {
  return GatedWork(nullptr, bf16_scratch(cols, n_tokens), n_rows, n_tokens).size;
}

namespace {

// To a fraction of bf16's rounding.
F32 sigmoid_rough(F32 x) {
  constexpr float kLog2E = 1.44269504f;
  return inverse_rough(set(1.0f) + exp2_rough(x * set(-kLog2E)));
}
struct RoughSilu {
  F32 operator()(F32 x) const { return x * sigmoid_rough(x); }
};
struct RoughGeluTanh {
  F32 operator()(F32 x) const { return x * sigmoid_rough(gelu_tanh_slope(x)); }
};

}  // namespace

// Rows of 32 values of an input, as its step of a pack.
template <class Activation>
static void round_gated(const Activation& activate, const float* gate, const float* up,
                        int64_t n_tokens, int64_t n_rows, size_t pack_bytes, std::byte* dst) {
  const auto value = [&](int64_t at) { return activate(load(gate + at)) * load(up + at); };
  for (int64_t t = 0; t < n_tokens; ++t) {
    std::byte* to =
        dst + static_cast<size_t>(t / kTileUnitRows) * pack_bytes + t % kTileUnitRows * 64;
    for (int64_t r = 0; r < n_rows; r += kGatedRows, to += kTileUnitBytes) {
      const int64_t at = t * n_rows + r;
      store_i32(to, round_bf16_pair(value(at), value(at + kLanes)));
    }
  }
}

static void bf16_gated_group(const GatedChunk& chunk, const std::byte* packs) {
  static_assert(kGatedRows == 32);
  const int64_t n_tokens = chunk.gate.n_tokens;
  const int64_t n_rows = chunk.gate.n_rows;
  const GatedWork work(chunk.scratch, bf16_scratch(chunk.gate.cols, n_tokens), n_rows, n_tokens);
  multiply_gate(chunk, work, [&](const MatmulChunk& rows) { bf16_multiply(rows, packs); });
  const size_t bytes = bf16_pack_bytes(chunk.cols);
  std::byte* first = chunk.packs + chunk.gate.first_row / kGatedRows * kTileUnitBytes;
  with_activation<RoughSilu, RoughGeluTanh>(chunk.activation, [&](auto activate) {
    round_gated(activate, work.gate, work.up, n_tokens, n_rows, bytes, first);
  });
  // Of the last pack, inputs that are not there.
  for (int64_t t = n_tokens; t < round_up(n_tokens, kTileUnitRows); ++t) {
    std::byte* to = first + static_cast<size_t>(t / kTileUnitRows) * bytes + t % kTileUnitRows * 64;
    for (int64_t r = 0; r < n_rows; r += kGatedRows, to += kTileUnitBytes) memset(to, 0, 64);
  }
}

const PackedProducts kBf16Products = {
    .tokens = kTileUnitRows,
    .pack_bytes = bf16_pack_bytes,
    .pack = bf16_pack,
    .rows = kSliceRows,
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
