// A part of a prompt that is being repeated (KvCache::begin_repeat).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/memory.h"
#include "kernels/backend.h"

namespace kve {

struct LayerCache;

class Repeat {
 public:
  // KVzip+ (`plus`): weights are taken per unit of the norm of the query's input, each query head's
  // apart, so that end_prompt() can multiply them by what the rows' values write.
  Repeat(int n_layers, bool plus, const std::shared_ptr<MemoryCounter>& counter);

  // Positions [first, end) of a prompt of n_tokens, whose first tokens are sinks.
  void begin(int first, int end, int sinks, int n_tokens);
  // As AttendTask::log_sums.
  float* log_sums(int64_t n, int n_heads);
  bool plus() const { return plus_; }
  // Of the queries of the pass at hand: rows that they are products of.
  void observe_inputs(ConstMat x);
  // Raises KeptHead::mass, or most(), to what the queries of a pass gave the part. Throws
  // CapacityError.
  void observe(Backend& backend, const AttendParams& params, const AttendTask& task, int index,
               LayerCache* layer);
  // [n_heads][n_tokens] of a layer; empty before its first pass.
  const CountedVector<float>& most(int layer) const { return most_[static_cast<size_t>(layer)]; }

 private:
  void observe_heads(Backend& backend, const AttendParams& params, const AttendTask& task,
                     std::span<const HeadView> heads, CountedVector<float>* most);

  bool plus_;
  std::vector<CountedVector<float>> most_;  // of each layer
  std::vector<float> input_logs_;           // base 2, of the norms
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
