// A part of a prompt that is being repeated (KvCache::begin_repeat).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace kve {

struct LayerCache;

class Repeat {
 public:
  // Positions [first, end) of a prompt of n_tokens, whose first tokens are sinks.
  void begin(int first, int end, int sinks, int n_tokens);
  // As AttendTask::log_sums.
  float* log_sums(int64_t n, int n_heads);
  // Raises KeptHead::mass to what the queries of a pass gave the part.
  void observe(Backend& backend, const AttendParams& params, const AttendTask& task,
               LayerCache* layer);

 private:
  int n_tokens_ = 0;
  bool hides_rows_ = false;
  // As HeadView::dead: rows that have no part in the softmax, and those whose weights do not count.
  std::vector<uint64_t> hidden_;
  std::vector<uint64_t> unweighed_;
  // Of the pass at hand: as AttendTask has them.
  std::vector<float> log_sums_;
  std::vector<float> out_;
};

}  // namespace kve
