// H2O as a published benchmark ran it (docs of methods: nothing is freed, tokens are masked): the
// prompt and the first step after it see everything, scores begin with that step, and a token that
// was masked may come back. Kept exactly, its off-by-one included, to reproduce those figures.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kve {

class H2oBench {
 public:
  // heavy, recent: shares of the keys that the first step sees.
  H2oBench(double heavy, double recent) : heavy_share_(heavy), recent_share_(recent) {}

  // The weights [n] that the query of a decode step gave to n keys, its own the last. The mask
  // [n + 1] says which keys the next step sees; its last entry is for the token not yet there.
  void step(std::span<const float> weights);

  const std::vector<uint8_t>& mask() const { return mask_; }
  const std::vector<float>& scores() const { return scores_; }  // [n]
  int heavy() const { return heavy_; }
  int recent() const { return recent_; }

 private:
  double heavy_share_;
  double recent_share_;
  int heavy_ = -1;  // before the first step
  int recent_ = 0;
  std::vector<float> scores_;
  std::vector<uint8_t> mask_;
};

}  // namespace kve
