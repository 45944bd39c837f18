// Some rows of gate and up, and what they become, before it is packed for the next product.
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {
namespace {

struct GatedWork {
  float* gate;  // [n_tokens][n_rows]
  float* up;
  std::byte* product;
  size_t size;

  // product_scratch: what one of both products needs.
  GatedWork(std::byte* data, size_t product_scratch, int64_t n_rows, int64_t n_tokens) {
    Carver carver(data);
    gate = carver.take<float>(n_tokens * n_rows);
    up = carver.take<float>(n_tokens * n_rows);
    product = carver.take<std::byte>(static_cast<int64_t>(product_scratch));
    size = carver.size();
  }
};

}  // namespace

// gate and up, [n_tokens][n_rows] each, by multiply(chunk). In `work`.
template <class Multiply>
static void multiply_gate(const GatedChunk& chunk, const GatedWork& work,
                          const Multiply& multiply) {
  const auto product = [&](MatmulChunk rows, float* y) {
    rows.y = y;
    rows.y_stride = rows.n_rows;
    rows.y_row = rows.first_row;
    rows.scratch = work.product;
    multiply(rows);
  };
  product(chunk.gate, work.gate);
  product(chunk.up, work.up);
}

}  // namespace kve::KVE_ISA
