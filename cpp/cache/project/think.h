// ThinK (arXiv 2407.21018): channels of keys that queries hardly use are left out. What a channel
// gives the scores is bounded by the norms of its queries and of its keys; those with the largest
// products stay, as they are.
#pragma once

#include <span>
#include <vector>

#include "base/span.h"
#include "cache/basis.h"

namespace kve {

// keys [n, dim] of one kv head, query_squares [dim]: mean squares of its queries. The n_kept
// channels (1 to dim) that stay, rising; of equal ones the first.
std::vector<int> think_channels(ConstMat keys, std::span<const double> query_squares, int n_kept);

// The same as a basis: unit vectors, width = n_kept.
BasisData think_basis(ConstMat keys, std::span<const double> query_squares, int n_kept);

}  // namespace kve
