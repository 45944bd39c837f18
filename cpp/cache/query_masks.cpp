#include "cache/query_masks.h"

#include <cmath>

#include "base/error.h"
#include "cache/select/h2o_bench.h"

namespace kve {
namespace {

size_t words_of(int rows) { return (static_cast<size_t>(rows) + 63) / 64; }

}  // namespace

QueryMasks::Head::Head(const std::shared_ptr<MemoryCounter>& counter)
    : dead(CountedAllocator<uint64_t>(counter)), scores(CountedAllocator<float>(counter)) {}

QueryMasks::QueryMasks(const std::shared_ptr<MemoryCounter>& counter)
    : heads_(CountedAllocator<Head>(counter)), next_(CountedAllocator<Head>(counter)) {}

bool QueryMasks::sees(int head, int row) const {
  if (empty()) return true;
  const CountedVector<uint64_t>& dead = heads_[static_cast<size_t>(head)].dead;
  const auto r = static_cast<size_t>(row);
  return r / 64 >= dead.size() || (dead[r / 64] >> (r % 64) & 1) == 0;
}

void QueryMasks::reserve(int n_rows) {
  for (Head& head : heads_) {
    if (words_of(n_rows) <= head.dead.size()) continue;
    head.dead.reserve(words_of(n_rows));
    head.dead.resize(words_of(n_rows));
  }
}

void QueryMasks::show(std::span<const HeadView> views, std::span<HeadView> out) const {
  KVE_ASSERT(!out.empty() && out.size() % views.size() == 0);
  const size_t group = out.size() / views.size();
  for (size_t h = 0; h < out.size(); ++h) {
    out[h] = views[h / group];
    if (!empty()) out[h].dead = heads_[h].dead.data();
  }
}

void QueryMasks::check_heads(int n_heads) const {
  if (empty() || n_heads == this->n_heads()) return;
  throw FormatError(message("cache: expected queries of ", this->n_heads(),
                            " heads, as the restored state has them, found ", n_heads));
}

void QueryMasks::step(std::span<const std::vector<float>> weights, int n_rows, int heavy,
                      int recent) {
  check_heads(static_cast<int>(weights.size()));
  const auto n = static_cast<size_t>(n_rows);
  const std::shared_ptr<MemoryCounter> counter = heads_.get_allocator().counter();
  CountedVector<Head> next(heads_.get_allocator());
  next.reserve(weights.size());
  for (size_t h = 0; h < weights.size(); ++h) {
    Head& head = next.emplace_back(counter);
    head.scores.reserve(n);
    if (!empty()) head.scores.assign(heads_[h].scores.begin(), heads_[h].scores.end());
    head.scores.resize(n);
    const std::vector<uint8_t> mask =
        h2o_bench_step(std::span(weights[h]).first(n), heavy, recent, head.scores);
    head.dead.resize(words_of(n_rows + 1));
    for (size_t row = 0; row < n; ++row) {
      if (mask[row] == 0) head.dead[row / 64] |= uint64_t{1} << (row % 64);
    }
  }
  next_.swap(next);
}

void QueryMasks::commit() noexcept {
  if (!is_stepping()) return;
  heads_.swap(next_);
  rollback();
}

void QueryMasks::rollback() noexcept { CountedVector<Head>(next_.get_allocator()).swap(next_); }

void QueryMasks::clear() noexcept {
  rollback();
  CountedVector<Head>(heads_.get_allocator()).swap(heads_);
}

void QueryMasks::save(StateWriter* out) const {
  for (const Head& head : heads_) {
    const size_t n = head.scores.size();
    for (size_t word = 0; word < words_of(static_cast<int>(n)); ++word) out->put(head.dead[word]);
    out->put_bytes(reinterpret_cast<const std::byte*>(head.scores.data()), n * sizeof(float));
  }
}

void QueryMasks::load(int n_heads, int n_rows, const std::string& where, StateReader* in) {
  const auto n = static_cast<size_t>(n_rows);
  const std::shared_ptr<MemoryCounter> counter = heads_.get_allocator().counter();
  for (int h = 0; h < n_heads; ++h) {
    if (n > in->left() / sizeof(float)) bad_field(where, "a number of scores of", n_rows);
    Head& head = heads_.emplace_back(counter);
    head.dead.resize(words_of(n_rows));
    head.scores.resize(n);
    for (uint64_t& word : head.dead) word = in->get<uint64_t>("masked rows");
    const int odd = n_rows % 64;
    if (odd != 0 && head.dead.back() >> odd != 0) bad_field(where, "a masked row after", n_rows);
    for (size_t row = 0; row < n; ++row) {
      const auto score = in->get<float>("score");
      if (!std::isfinite(score) || score < 0) {
        bad_field(where, "a score below 0 or not finite, of row", static_cast<int64_t>(row));
      }
      head.scores[row] = score;
    }
  }
}

size_t QueryMasks::bytes() const {
  size_t out = (heads_.capacity() + next_.capacity()) * sizeof(Head);
  for (const CountedVector<Head>* heads : {&heads_, &next_}) {
    for (const Head& head : *heads) {
      out += head.dead.capacity() * sizeof(uint64_t) + head.scores.capacity() * sizeof(float);
    }
  }
  return out;
}

}  // namespace kve
