// How a selector was asked to work: a stage of a cache spec (cache/spec.h).
#pragma once

#include <cstdint>
#include <string>

namespace kve {

struct SelectorSpec {
  enum class Kind : uint8_t {
    full,
    window,
    streaming,
    h2o,
    h2o_realdrop,
    h2o_bench,
    snapkv,
    pyramidkv,
    tova,
    observed,
    knorm,
    keydiff,
    expected,
    random,
    duo,
    kvzip,
    custom,
    quest,
    infllm,
  };
  Kind kind = Kind::full;
  // The heads of a layer have one budget together (Ada-KV).
  bool joint = false;
  // What stays of each head: a share of the prompt's tokens, or so many when that is above 0. What
  // is read of it: a share of the tokens up to the query's own, or so many.
  double share = 1;
  int tokens = 0;
  int sinks = 0;   // first positions that always stay
  int recent = 0;  // newest positions that always stay; h2o: -1 for half of the budget
  // Tokens between two selections after the prompt; 0: there are none.
  int interval = 0;
  bool chunked = false;    // a prompt is also selected from after each of its chunks
  bool reassign = false;   // streaming: what stays moves to positions 0, 1, ...
  int window = 0;          // newest queries that vote
  int kernel = 0;          // snapkv, pyramidkv: votes are averaged over so many neighbours
  double beta = 0;         // pyramidkv: the mean budget over the last layer's
  double alpha = 0;        // joint: the share of its budget that each head has for itself
  int chunk = 0;           // kvzip: tokens that are repeated at a time
  int plus = 0;            // kvzip: 1 for weights times what values write, per input's norm
  int future = 0;          // expected: positions that future queries may have
  double epsilon = 0;      // expected: added to every weight
  double streaming = 0;    // duo: the share of all kv heads that keep sinks and recent tokens only
  uint64_t seed = 0;       // random
  int page = 0;            // quest: tokens that are read together or not at all
  int dense = 0;           // quest: the first so many layers, whose queries read all tokens
  std::string gates = {};  // duo: file
  // infllm (cache/blocks/): tokens that stay first of all, and those of the local window; tokens of
  // a block, blocks that are retrieved, the keys whose mean represents one, queries that retrieve
  // together, and blocks of a file that are kept in memory.
  int init = 0;
  int local = 0;
  int block = 0;
  int topk = 0;
  int representatives = 0;
  int span = 0;
  int resident = 0;
  std::string offload = {};  // empty: blocks stay in memory; "file", or the folder of the file

  // Whether nothing is ever dropped.
  bool keeps_all() const { return kind == Kind::full || reads_some(); }
  // Whether queries read some of the tokens only, each its own; all stay.
  bool reads_some() const { return kind == Kind::quest; }
  // Whether what leaves a local window is kept apart, as blocks (cache/blocks/).
  bool uses_blocks() const { return kind == Kind::infllm; }
  bool operator==(const SelectorSpec&) const = default;
};

}  // namespace kve
