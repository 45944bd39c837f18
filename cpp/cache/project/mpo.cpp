#include "cache/project/mpo.h"

#include <cmath>
#include <utility>

#include "base/error.h"

namespace kve {
namespace {

// Smaller singular values (rows of zeros and denormal numbers) have no inverse in float32.
constexpr double kSmallestValue = 1e-30;

// The products of rows of which every run of `size` values was replaced by what its `bond` leading
// right vectors, of all runs together, show of it.
Matrix truncated(const Matrix& products, int size, int bond) {
  Matrix own(size, size);
  for (int first = 0; first < products.rows; first += size) {
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) own.row(i)[j] += products.row(first + i)[first + j];
    }
  }
  const Eigen eigen = symmetric_eigen(std::move(own));
  Matrix kept(size, size);
  for (int c = 0; c < bond; ++c) {
    const double* vector = eigen.vectors.row(c);
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) kept.row(i)[j] += vector[i] * vector[j];
    }
  }
  // From the left and from the right, as both are symmetric.
  const auto multiplied = [&](const Matrix& from) {
    Matrix out(from.cols, from.rows);
    for (int r = 0; r < from.rows; ++r) {
      for (int first = 0; first < from.cols; first += size) {
        for (int i = 0; i < size; ++i) {
          double sum = 0;
          for (int j = 0; j < size; ++j) sum += kept.row(i)[j] * from.row(r)[first + j];
          out.row(first + i)[r] = sum;
        }
      }
    }
    return out;
  };
  return multiplied(multiplied(products));
}

}  // namespace

void add_mpo_pieces(ConstMat rows, Gram* pieces) {
  const int block = pieces->width();
  KVE_ASSERT(rows.cols % block == 0);
  for (int64_t first = 0; first < rows.cols; first += block) {
    pieces->add(rows.columns(first, block));
  }
}

void add_mpo_pieces(const Backend& backend, const uint16_t* rows, int64_t n, int64_t width,
                    Gram* pieces) {
  const int64_t block = pieces->width();
  KVE_ASSERT(block <= kMostGramBlock && width % block == 0);
  pieces->count_rows(backend.add_gram({rows, n, width, width, block, pieces->sums()}));
}

BasisData mpo_basis(const Gram& pieces, int dim, const MpoChain& chain) {
  const int block = pieces.width();
  KVE_ASSERT(dim % block == 0 && !chain.sizes.empty() && chain.sizes.size() == chain.bonds.size());
  Matrix products = pieces.matrix();
  int rest = 1;
  for (size_t i = chain.sizes.size() - 1; i > 0; --i) {
    rest *= chain.sizes[i];
    if (chain.bonds[i] > 0) products = truncated(products, rest, chain.bonds[i]);
  }
  KVE_ASSERT(rest * chain.sizes[0] == block);
  const RightSvd svd = right_svd(std::move(products));
  const int width = chain.bonds[0] > 0 ? chain.bonds[0] : block;
  BasisData out;
  out.dim = dim;
  out.width = dim / block * width;
  out.block = block;
  out.block_width = width;
  const auto n = static_cast<size_t>(width);
  out.lift.assign(static_cast<size_t>(block) * n, 0);
  out.column.assign(n, 0);
  for (size_t c = 0; c < n; ++c) {
    const double value = svd.values[c];
    if (value < kSmallestValue) continue;
    const double* vector = svd.vectors.row(static_cast<int>(c));
    for (size_t j = 0; j < static_cast<size_t>(block); ++j) {
      out.lift[j * n + c] = static_cast<float>(vector[j] * std::sqrt(value));
    }
    out.column[c] = static_cast<float>(1 / value);
  }
  return out;
}

BasisData mpo_basis(ConstMat rows, const MpoChain& chain) {
  int block = 1;
  for (const int size : chain.sizes) block *= size;
  if (block < 1 || rows.cols < 1 || rows.cols % block != 0) {
    throw ConfigError(
        message("mpo: expected a block that divides rows of ", rows.cols, ", found ", block));
  }
  Gram pieces(block);
  add_mpo_pieces(rows, &pieces);
  return mpo_basis(pieces, static_cast<int>(rows.cols), chain);
}

BasisData mpo_basis(ConstMat rows, int block) {
  return mpo_basis(rows, MpoChain{.sizes = {block}, .bonds = {0}});
}

}  // namespace kve
