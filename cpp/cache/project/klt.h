// The Karhunen-Loeve transform of keys in the metric of the queries.
//
// What an error of a key costs is the error of its scores, so components are found for keys whose
// channels are weighted by the queries' mean squares M: U are the eigenvectors of M^(1/2) C M^(1/2)
// for the covariance C of keys within pages, coefficients are U^T M^(1/2) key, the lift is
// M^(-1/2) U. The eigenvalues then say what an error of each component costs (allocate_bits.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/span.h"
#include "cache/basis.h"
#include "cache/linalg.h"

namespace kve {

// Keys of one kv head, as they are stored (rotated back where they are anchored), page by page.
class KeyStatistics {
 public:
  explicit KeyStatistics(int dim);

  // rows: [n, dim]. Adds their deviations from their mean.
  void add_page(ConstMat rows);

  int dim() const { return deviations_.width(); }
  int64_t count() const { return deviations_.count(); }
  Matrix covariance() const;  // [dim, dim]; zeros before the first row

 private:
  Gram deviations_;
};

struct Klt {
  BasisData basis;                  // of one head: dim = width = block = block_width
  std::vector<double> eigenvalues;  // [dim], falling, at least 0
};

// metric: [dim], mean squared query per channel. Channels that queries hardly use count as 1/1000
// of the mean channel at least. Throws ConfigError unless the metric has dim finite values >= 0.
Klt klt_basis(const KeyStatistics& keys, std::span<const double> metric);

// The same from its eigenvectors, rows [dim][dim], and the weights of channels, all above 0.
Klt klt_basis(std::span<const float> vectors, std::span<const float> eigenvalues,
              std::span<const float> weights);

// Replaces the two channels of every rotation pair by their mean: keys and queries meet at any
// angle. Pairs as in BasisView.
void average_pairs(std::span<double> metric, int n_pairs, bool interleaved);

}  // namespace kve
