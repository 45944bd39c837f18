// What each query head of a layer sees of the rows of its kv head, where query heads that share one
// see different ones: H2O as a benchmark ran it (select/h2o_bench.h). No row goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"
#include "cache/state_bytes.h"
#include "kernels/backend.h"

namespace kve {

class QueryMasks {
 public:
  explicit QueryMasks(const std::shared_ptr<MemoryCounter>& counter);

  // Before the first step, when every head sees every row.
  bool empty() const { return heads_.empty(); }
  int n_heads() const { return static_cast<int>(heads_.size()); }
  // Rows that were not there at the latest step are seen.
  bool sees(int head, int row) const;

  // Room for a bit of every row. Throws CapacityError.
  void reserve(int n_rows);
  // `views` [n_kv_heads] as query heads see them: `out` [n_heads] is valid until the next change.
  void show(std::span<const HeadView> views, std::span<HeadView> out) const;

  // A step of h2o_bench_step() for each query head, of which the newest query gave the first n_rows
  // rows the `weights` [n_heads][n_rows or more]. Throws CapacityError, and FormatError where a
  // restored state is of another number of heads; nothing has changed until it is committed.
  void step(std::span<const std::vector<float>> weights, int n_rows, int heavy, int recent);
  bool is_stepping() const { return !next_.empty(); }
  void commit() noexcept;
  void rollback() noexcept;
  void clear() noexcept;
  void check_heads(int n_heads) const;

  // Those of n_rows rows, after the latest step: per head u64 words of rows it does not see, f32
  // scores. `load` throws FormatError.
  void save(StateWriter* out) const;
  void load(int n_heads, int n_rows, const std::string& where, StateReader* in);
  size_t bytes() const;

 private:
  struct Head {
    explicit Head(const std::shared_ptr<MemoryCounter>& counter);

    CountedVector<uint64_t> dead;  // as HeadView::dead, and bits of rows to come
    CountedVector<float> scores;   // of the rows that there were at the latest step
  };

  CountedVector<Head> heads_;  // [n_heads]
  CountedVector<Head> next_;   // once the step at hand is committed
};

}  // namespace kve
