// DecoQuant's decomposition (arXiv:2405.12591): a matrix product operator of two tensors.
//
// Rows [n, dim] are cut into pieces M [n * dim / block, block] = U S V^T, which become T_L T_S with
// T_L = U S^(1/2), the coefficients that are quantized, and T_S = S^(1/2) V^T, the lift. T_S needs
// the Gram matrix M^T M only, which adds up over rows.
//
// More than two tensors T_L T_2 .. T_m cut a block in sizes b_1 .. b_(m-1). Without truncation they
// give the T_L of two with block = the product of the sizes, and T_2 .. T_m fold into its T_S; they
// differ where a bond before a tensor is truncated. Truncating goes from the last tensor to the
// first (a decomposition of the rows, cut in what the tensors from there on hold, keeps the leading
// right vectors), so that T_S has orthogonal rows and T_L follows from them as before.
#pragma once

#include <vector>

#include "base/span.h"
#include "cache/basis.h"
#include "cache/linalg.h"
#include "kernels/backend.h"

namespace kve {

inline constexpr int kMpoBlock = 16;

// The tensors behind T_L, of a block of as many values as the product of the sizes.
struct MpoChain {
  std::vector<int> sizes = {kMpoBlock};
  std::vector<int> bonds = {0};  // before each of them; 0: not truncated
};

// rows: [n, dim], a row holds all kv heads of a layer. Components of singular values below
// kRankTolerance of the largest are dropped: their lift and column are 0. Throws ConfigError unless
// `block` divides dim.
BasisData mpo_basis(ConstMat rows, int block = kMpoBlock);
BasisData mpo_basis(ConstMat rows, const MpoChain& chain);

// The same in steps, for rows that arrive over time: `pieces` has the width of a block.
void add_mpo_pieces(ConstMat rows, Gram* pieces);
// The same of n rows [width] in f16 and blocks of at most kMostGramBlock, with the same bits.
void add_mpo_pieces(const Backend& backend, const uint16_t* rows, int64_t n, int64_t width,
                    Gram* pieces);
BasisData mpo_basis(const Gram& pieces, int dim, const MpoChain& chain);

}  // namespace kve
