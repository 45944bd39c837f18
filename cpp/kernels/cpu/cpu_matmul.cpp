// How matrix products are split into chunks. A chunk is some rows of one weight for all tokens.
#include <algorithm>
#include <tuple>

#include "kernels/cpu/cpu_backend.h"

namespace kve {
namespace {

// Weight bytes of one chunk when each byte is read once (decode): large enough to hide the hand-out
// of work, small enough to balance it.
constexpr int64_t kLeastChunkBytes = 16 << 10;
constexpr int64_t kMostChunkBytes = 128 << 10;
constexpr int64_t kChunksPerWeight = 64;
constexpr int64_t kTileChunkBytes = 256 << 10;
constexpr int64_t kMostRounds = 16;
// Up to this many values are quantized faster than another thread is woken.
constexpr int64_t kSerialInputValues = 2048;

// How much larger than the mean the rounding errors of a group of an input must be for a second
// plane (see PrecisionPlan for what that gains).
constexpr float kMixedLeastError = 1;
constexpr float kFastLeastError = 6;

// Of few inputs and weights as they lie in the file, which are read from memory once and unpacked
// for every plane: all groups have as many.
int plane_count(Precision precision) { return precision == Precision::fast ? 1 : 2; }

float least_error(Precision precision) {
  if (precision == Precision::fine) return 0;
  return precision == Precision::mixed ? kMixedLeastError : kFastLeastError;
}

// What a thread asks for while it waits, at most: more than there is time for, and what its second
// cache keeps during an operation with a compressed cache.
constexpr size_t kMostAsked = 256 << 10;

// Chunks of packed products for every thread, at the least.
constexpr int64_t kRoundsOfThread = 2;

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
int64_t round_up(int64_t n, int64_t unit) { return divide_up(n, unit) * unit; }

// Rows of a chunk of weights of which every byte is read once.
int64_t streaming_rows(const Weight& weight, int64_t unit) {
  const auto row_bytes = static_cast<int64_t>(weight.row_bytes);
  const int64_t bytes =
      std::clamp(weight.rows * row_bytes / kChunksPerWeight, kLeastChunkBytes, kMostChunkBytes);
  return round_up(std::max<int64_t>(bytes / std::max<int64_t>(row_bytes, 1), 1), unit);
}

int64_t tile_count(const Weight& weight) { return divide_up(weight.rows, kInterleavedRows); }

// Rows of a chunk of tiles. Long chunks, because the memory after a chunk is read ahead in vain;
// the same number for every thread. (Results do not depend on where chunks end.)
int64_t tile_rows(const Weight& weight, int64_t threads) {
  const int64_t bytes = weight.rows * static_cast<int64_t>(weight.row_bytes);
  const int64_t rounds = std::clamp<int64_t>(bytes / (threads * kTileChunkBytes), 1, kMostRounds);
  const int64_t tiles = tile_count(weight);
  return (tiles + rounds * threads - 1) / (rounds * threads) * kInterleavedRows;
}

}  // namespace

size_t CpuBackend::packs_before(const PackedProducts& kernels, int64_t cols, int64_t input) {
  return static_cast<size_t>(input / kernels.tokens) * kernels.pack_bytes(cols);
}

size_t CpuBackend::repacked_bytes(const Weight& weight) const {
  return kernels_.interleaved_tile_bytes(weight.type, weight.cols) *
         static_cast<size_t>(tile_count(weight));
}

void CpuBackend::repack(const Weight& weight, std::byte* memory) {
  constexpr int64_t kTiles = 4;  // of one task
  const int64_t n_tiles = tile_count(weight);
  pool_.parallel((n_tiles + kTiles - 1) / kTiles, [&](int64_t i) {
    kernels_.interleave({.type = weight.type,
                         .weight = weight.data,
                         .row_bytes = weight.row_bytes,
                         .rows = weight.rows,
                         .cols = weight.cols,
                         .first_tile = i * kTiles,
                         .n_tiles = std::min(n_tiles - i * kTiles, kTiles),
                         .tiles = memory});
  });
}

CpuBackend::Path CpuBackend::choose_path(const Product& product, Precision precision,
                                         int64_t n_tokens) const {
  const Weight& weight = *product.weight;
  if (precision == Precision::exact || format(weight.type).unpack == nullptr) return Path::exact;
  if (weight.repacked != nullptr) {
    if (n_tokens <= kMaxTileInputs) return Path::tiles;
  } else if (n_tokens * plane_count(precision) <= kMaxVectorInputs) {
    return Path::vector;
  }
  const bool rounds = kernels_.bf16.multiply != nullptr && precision != Precision::fine;
  return rounds ? Path::bf16 : Path::planes;
}

const PackedProducts& CpuBackend::packed(Path path) const {
  return path == Path::bf16 ? kernels_.bf16 : kernels_.planes;
}

int64_t CpuBackend::packed_rows(const PackedProducts& kernels, int64_t rows,
                                int64_t n_inputs) const {
  const int64_t blocks = divide_up(n_inputs, block_inputs(kernels, n_inputs));
  const int64_t chunks = std::max(divide_up(pool_.size() * kRoundsOfThread, blocks),
                                  divide_up(rows, kernels.most_rows));
  return round_up(divide_up(rows, chunks), kernels.rows);
}

int64_t CpuBackend::block_inputs(const PackedProducts& kernels, int64_t n_inputs) {
  const int64_t blocks = divide_up(n_inputs, kernels.most_inputs);
  return round_up(divide_up(n_inputs, blocks), 2 * kernels.tokens);
}

int64_t CpuBackend::job_rows(const Weight& weight, Path path, int64_t n_inputs) const {
  switch (path) {
    case Path::exact:
      return round_up(std::min<int64_t>(streaming_rows(weight, 4), 64), kernels_.exact_rows);
    case Path::vector:
      return streaming_rows(weight, 4);
    case Path::tiles:
      return tile_rows(weight, pool_.size());
    case Path::planes:
    case Path::bf16:
      break;
  }
  return packed_rows(packed(path), weight.rows, n_inputs);
}

const std::byte* CpuBackend::quantize_input(ConstMat x, Precision precision, Path path) {
  Scratch& memory = input_memory_[static_cast<size_t>(path)];
  if (path == Path::vector) {
    const int planes = plane_count(precision);
    const size_t bytes = kernels_.vector_bytes(x.cols) * static_cast<size_t>(x.rows * planes);
    std::byte* vectors = memory.get<std::byte>(bytes);
    kernels_.quantize_rows(x.data, x.stride, x.rows, x.cols, planes, vectors);
    return vectors;
  }
  if (path == Path::tiles) {
    std::byte* input = memory.get<std::byte>(kernels_.tile_input_bytes(x.cols, x.rows));
    // Not row by row where a row is shorter than the hand-out of work.
    const bool alone = x.rows * x.cols <= kSerialInputValues;
    const int64_t n_lanes = alone ? 1 : std::min<int64_t>(pool_.size(), x.rows);
    pool_.parallel(n_lanes, [&](int64_t lane) {
      for (int64_t t = lane; t < x.rows; t += n_lanes) {
        kernels_.quantize_for_tiles(x.row(t), x.cols, t, x.rows, least_error(precision), input);
      }
    });
    kernels_.end_tile_input(x.cols, x.rows, input);
    return input;
  }
  const PackedProducts& kernels = packed(path);
  const int64_t step = kernels.tokens;
  const int64_t n_packs = divide_up(x.rows, step);
  const size_t bytes = kernels.pack_bytes(x.cols);
  std::byte* packs = memory.get<std::byte>(bytes * static_cast<size_t>(n_packs));
  in_stretches(n_packs, [&](int64_t i, int /*thread*/) {
    kernels.pack(x.row(i * step), x.stride, std::min(x.rows - i * step, step), x.cols,
                 least_error(precision), packs + static_cast<size_t>(i) * bytes);
  });
  return packs;
}

MatmulChunk CpuBackend::chunk_of(const Product& product, const MatmulPart& part,
                                 std::byte* scratch) const {
  const Weight& weight = *product.weight;
  return {
      .format = &format(weight.type),
      .weight = weight.data,
      .row_bytes = weight.row_bytes,
      .tiles = weight.repacked,
      .cols = weight.cols,
      .first_row = part.first_row,
      .n_rows = part.n_rows,
      .bias = product.bias,
      .y = product.y.data == nullptr ? nullptr : product.y.row(part.first_input),
      .y_stride = product.y.stride,
      .n_tokens = part.n_inputs,
      .scratch = scratch,
  };
}

void CpuBackend::run(const MatmulJob& job, ConstMat x, std::byte* scratch) const {
  const QuantizedInput& input = inputs_[static_cast<size_t>(job.path)];
  const MatmulChunk chunk = chunk_of(*job.product, job.part, scratch);
  switch (job.path) {
    case Path::exact:
      return kernels_.exact(chunk, x.data, x.stride);
    case Path::vector:
      return kernels_.matvec(chunk, input);
    case Path::tiles:
      return kernels_.matvec_tiles(chunk, input.data);
    case Path::planes:
    case Path::bf16:
      break;
  }
  const PackedProducts& kernels = packed(job.path);
  kernels.multiply(chunk, input.data + packs_before(kernels, x.cols, job.part.first_input));
}

Stretch CpuBackend::weights_of(const MatmulJob& job) const {
  const Weight& weight = *job.product->weight;
  const bool tiles = job.path == Path::tiles;
  const std::byte* data = tiles ? weight.repacked : weight.data;
  const int64_t rows = tiles ? kInterleavedRows : 1;  // that lie together
  const size_t bytes =
      tiles ? kernels_.interleaved_tile_bytes(weight.type, weight.cols) : weight.row_bytes;
  return {data + static_cast<size_t>(job.part.first_row / rows) * bytes,
          std::min(static_cast<size_t>(divide_up(job.part.n_rows, rows)) * bytes, kMostAsked)};
}

// Of one product; of inputs that are packed, block by block.
void CpuBackend::add_jobs(const Product& product, Path path, int64_t n_inputs) {
  const Weight& weight = *product.weight;
  const bool packs = path >= Path::planes;
  const int64_t block = packs ? block_inputs(packed(path), n_inputs) : n_inputs;
  const int64_t rows = job_rows(weight, path, n_inputs);
  for (int64_t t = 0; t < n_inputs; t += block) {
    for (int64_t r = 0; r < weight.rows; r += rows) {
      matmul_jobs_.push_back({&product,
                              path,
                              {.first_row = r,
                               .n_rows = std::min(weight.rows - r, rows),
                               .first_input = t,
                               .n_inputs = std::min(n_inputs - t, block)}});
    }
  }
}

void CpuBackend::matmul(ConstMat x, std::span<const Product> products, Precision precision) {
  if (x.rows == 0) return;
  matmul_jobs_.clear();
  bool used[kPaths] = {};
  for (const Product& product : products) {
    const Path path = choose_path(product, precision, x.rows);
    used[static_cast<size_t>(path)] = true;
    add_jobs(product, path, x.rows);
  }
  size_t scratch = std::max(kernels_.exact_scratch(x.cols), kernels_.matvec_scratch(x.cols));
  for (const Path path : {Path::vector, Path::tiles, Path::planes, Path::bf16}) {
    const auto index = static_cast<size_t>(path);
    if (!used[index]) continue;
    inputs_[index] = {quantize_input(x, precision, path), plane_count(precision)};
    if (path < Path::planes) continue;
    const PackedProducts& kernels = packed(path);
    scratch = std::max(scratch, kernels.scratch(x.cols, block_inputs(kernels, x.rows)));
  }
  reserve_thread_scratch(scratch);
  const auto n_jobs = static_cast<int64_t>(matmul_jobs_.size());
  const auto run_one = [&](int64_t i, int thread) {
    run(matmul_jobs_[static_cast<size_t>(i)], x, thread_scratch(thread));
  };
  if (used[static_cast<size_t>(Path::planes)] || used[static_cast<size_t>(Path::bf16)]) {
    // Those of the same inputs are neighbours.
    std::ranges::sort(matmul_jobs_, {}, [](const MatmulJob& job) {
      return std::tuple(job.part.first_input, job.product, job.part.first_row);
    });
    in_stretches(n_jobs, run_one);
  } else {
    ask_ahead([&](int thread) {
      return thread < n_jobs ? weights_of(matmul_jobs_[static_cast<size_t>(thread)]) : Stretch();
    });
    pool_.parallel(n_jobs, run_one);
  }
}

// What gate and up become is quantized group by group as it is made, and never written as floats.
bool CpuBackend::fused_block(ConstMat x, const GatedBlock& block, Precision in, Precision out) {
  const int64_t width = block.gate.weight->rows;
  const Path path = choose_path(block.gate, in, x.rows);
  if (path < Path::planes || choose_path(block.up, in, x.rows) != path ||
      choose_path(block.down, out, x.rows) != path) {
    return false;
  }
  const PackedProducts& kernels = packed(path);
  if (width % kGatedRows != 0 || kGatedRows % kernels.rows != 0) return false;

  const std::byte* packs = quantize_input(x, in, path);
  const int64_t n_packs = divide_up(x.rows, kernels.tokens);
  const size_t bytes = kernels.pack_bytes(width);
  std::byte* made = gated_packs_.get<std::byte>(bytes * static_cast<size_t>(n_packs));
  const int64_t near = block_inputs(kernels, x.rows);
  const int64_t n_near = std::min(near, x.rows);
  const int64_t step = round_up(packed_rows(kernels, width, x.rows), kGatedRows);
  reserve_thread_scratch(
      std::max(kernels.gated_scratch(x.cols, step, n_near), kernels.scratch(width, n_near)));
  for_parts({width, step, x.rows, near}, [&](const MatmulPart& part, int thread) {
    kernels.gated_group({.gate = chunk_of(block.gate, part, nullptr),
                         .up = chunk_of(block.up, part, nullptr),
                         .activation = static_cast<int>(block.activation),
                         .cols = width,
                         .packs = made + packs_before(kernels, width, part.first_input),
                         .scratch = thread_scratch(thread)},
                        packs + packs_before(kernels, x.cols, part.first_input));
  });
  if (kernels.end_pack != nullptr) {
    in_stretches(n_packs, [&](int64_t i, int /*thread*/) {
      kernels.end_pack(width, least_error(out), made + static_cast<size_t>(i) * bytes);
    });
  }
  const int64_t n_rows = block.down.weight->rows;
  const int64_t rows = packed_rows(kernels, n_rows, x.rows);
  for_parts({n_rows, rows, x.rows, near}, [&](const MatmulPart& part, int thread) {
    kernels.multiply(chunk_of(block.down, part, thread_scratch(thread)),
                     made + packs_before(kernels, width, part.first_input));
  });
  return true;
}

}  // namespace kve
