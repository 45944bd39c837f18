// What left the local window of one layer (InfLLM, arXiv 2402.04617), and attention over both.
//
// A query at position p sees the tokens after p - local as they are, in the sides of the layer. Of
// those before it sees the first `init` ones, the `topk` blocks that its span of queries retrieves,
// and the tokens of the remainder, which are too few for another block, all under one softmax.
// Their keys are as before their rotary embedding, and the query is turned to position local - 1,
// so that every such token seems to be that far away.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "cache/blocks/block_store.h"
#include "cache/select/selector_spec.h"
#include "cache/side_cache.h"
#include "cache/stats.h"
#include "kernels/backend.h"

namespace kve {

// cos and sin of the angles that turn consecutive rows back to one position.
class TurnTable {
 public:
  // Row i is turned by `first` - i positions.
  void set(const Rotation& rotation, int64_t first, int64_t n);
  void turn(Backend& backend, Mat rows, int head_dim) const;

 private:
  Rotation rotation_;
  int64_t first_ = 0;
  int64_t n_ = 0;
  std::vector<float> cos_;  // [n, n_pairs]
  std::vector<float> sin_;
};

// What attention needs for a moment; one for all layers of a cache. Not counted, as the backend's.
struct BlockWork {
  TurnTable key_turns;
  TurnTable query_turns;
  Scratch keys;     // [rows that leave, n_kv_heads * key_dim]
  Scratch queries;  // [n, n_heads * key_dim] turned
  Scratch out;      // [n, n_heads * value_dim] of what is not local
  Scratch sums;     // [n, n_heads] of the local window, then of the rest
  Scratch scores;   // mean query and scores of blocks
  std::vector<PageView> pages;
  std::vector<HeadView> heads;
  std::vector<float*> mass;
};

// What it is made of.
struct BlockSetup {
  SelectorSpec spec;
  int n_kv_heads = 0;
  int key_dim = 0;
  int value_dim = 0;
  std::shared_ptr<const Rotation> rotation;
  // Of the pages of a block, by kv head; these hold rows of one head.
  std::vector<PageFormat> keys;
  std::vector<PageFormat> values;

  int pages_per_block() const { return spec.block / kPageTokens; }
  size_t record_bytes() const;
};

class BlockMemory {
 public:
  BlockMemory(const BlockSetup& setup, std::shared_ptr<BlockFile> file,
              const std::shared_ptr<MemoryCounter>& counter);
  // Copying shares the blocks.

  // Attention of a span of at most spec.span queries, the newest tokens, of which task.heads are
  // the views of the layer's sides; what leaves the local window until the last of them is copied
  // from there. Throws CapacityError and IoError, and FormatError when a restored memory is of a
  // model with other query heads.
  void attend(Backend& backend, const AttendParams& params, const AttendTask& task,
              BlockWork* work);
  // The tokens of the latest attend() are committed in two steps, or not. Throws CapacityError and
  // IoError.
  void prepare_commit(Backend& backend);
  void finish_commit() noexcept;
  // The sides have dropped their rows before this position.
  void drop_local(int first_local) noexcept;
  void rollback() noexcept;
  // Tokens before this position are only here.
  int end() const { return end_; }
  // Nothing has left the local window: the newest tokens, from n on, can be forgotten. What they
  // gave others stays counted.
  void forget(int n) noexcept;
  void clear() noexcept;

  // As KvCache::read_path(), of the blocks.
  ReadPath read_path(const Backend& backend, Precision precision) const;
  void count(CacheStats* stats) const;

 private:
  friend class BlockMemoryIo;  // kv_cache_io_blocks.cpp

  int init_rows() const;       // of the rows
  int remainder_rows() const;  // behind them, those included that are not committed
  int width(bool values) const {
    return setup_.n_kv_heads * (values ? setup_.value_dim : setup_.key_dim);
  }
  int group() const { return n_heads_ / setup_.n_kv_heads; }
  void set_heads(int n_heads);
  void take_rows(Backend& backend, const AttendTask& task, int end, BlockWork* work);
  void retrieve(Backend& backend, ConstMat turned, BlockWork* work);
  std::span<const HeadView> far_views(BlockWork* work);
  void attend_far(Backend& backend, const AttendParams& params, const AttendTask& task, float* sums,
                  float* far_sums, BlockWork* work);
  void weigh(Backend& backend, const AttendParams& params, const AttendTask& task,
             const float* sums, BlockWork* work);
  void score_leaving();
  void add_block(Backend& backend, int first_row);
  void represent(int first_row);

  BlockSetup setup_;
  BlockStore store_;
  int n_heads_ = 0;      // of queries, once they were seen
  int end_ = 0;          // committed tokens [0, end_) have left the local window
  int next_end_ = 0;     // when the pass at hand is committed
  int new_blocks_ = 0;   // that it adds
  int first_local_ = 0;  // position of row 0 of the layer's sides
  // f16 [rows, width]: the first tokens, then the remainder.
  CountedVector<uint16_t> keys_;
  CountedVector<uint16_t> values_;
  CountedVector<float> scores_;              // [remainder rows, n_heads]
  CountedVector<uint16_t> representatives_;  // f16 [blocks, n_heads * key_dim]
  // What local rows got from all queries so far, and from those of the pass at hand: by query head,
  // [rows].
  CountedVector<CountedVector<float>> mass_;
  CountedVector<CountedVector<float>> pending_;
  CountedVector<int32_t> retrieved_;  // by the latest attend(), rising
};

}  // namespace kve
