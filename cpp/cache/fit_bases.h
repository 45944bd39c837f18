// From the rows of a tail to the bases in which they will be written.
#pragma once

#include <span>
#include <vector>

#include "cache/basis.h"
#include "cache/project/klt.h"
#include "cache/query_squares.h"
#include "cache/side_cache.h"

namespace kve {

// The basis of a projector that needs no rows (hadamard, rotation).
BasisData fixed_basis(const ProjectorSpec& projector, int dim);

// The bases of the kv heads of one layer, with the bits of their components where these have bits
// of their own, which heads with the same mean of bits share out.
std::vector<BasisData> klt_bases(std::span<const SideSetup* const> setups,
                                 std::span<const Klt> heads);

// Sides of one layer: of all its kv heads from first_head on, or one of all heads.
struct SidesToFit {
  std::span<const SideCache> sides;
  int first_head;
  int appended;                         // rows, the newest, that are not being committed
  std::vector<RowPositions> positions;  // of the rows of each side
};

// The bases of sides that seal their n oldest rows of the tail: side.bases_to_fit(n) for each side,
// one side after the other. n_new: tokens that are being committed. Thread-safe: changes nothing.
std::vector<BasisData> fit_bases(const Backend& backend, const SidesToFit& fitted, int n,
                                 const QuerySquares& queries, int n_new);

}  // namespace kve
