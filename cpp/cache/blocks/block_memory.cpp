#include "cache/blocks/block_memory.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/half.h"
#include "cache/select/selector.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

// Gives back what a long pass needed.
template <class T>
void shrink(CountedVector<T>* memory, size_t n) noexcept {
  if (memory->capacity() <= n || memory->size() > n) return;
  try {
    CountedVector<T> smaller(memory->get_allocator());
    smaller.reserve(n);
    smaller.assign(memory->begin(), memory->end());
    memory->swap(smaller);
  } catch (const CapacityError&) {
    // No memory for the smaller copy: keep the large one.
  }
}

template <class T>
void erase_rows(CountedVector<T>* memory, int first, int n, int width) {
  const auto begin = memory->begin() + std::ptrdiff_t{first} * width;
  memory->erase(begin, begin + std::ptrdiff_t{n} * width);
}

}  // namespace

size_t BlockSetup::record_bytes() const {
  size_t bytes = 0;
  for (const std::vector<PageFormat>* side : {&keys, &values}) {
    for (const PageFormat& format : *side) {
      bytes += static_cast<size_t>(pages_per_block()) * end_of_page(format);
    }
  }
  return bytes;
}

BlockMemory::BlockMemory(const BlockSetup& setup, std::shared_ptr<BlockFile> file,
                         const std::shared_ptr<MemoryCounter>& counter)
    : setup_(setup),
      store_(setup.record_bytes(), setup.spec.resident, std::move(file), counter),
      keys_(CountedAllocator<uint16_t>(counter)),
      values_(CountedAllocator<uint16_t>(counter)),
      scores_(CountedAllocator<float>(counter)),
      representatives_(CountedAllocator<uint16_t>(counter)),
      mass_(CountedAllocator<CountedVector<float>>(counter)),
      pending_(CountedAllocator<CountedVector<float>>(counter)),
      retrieved_(CountedAllocator<int32_t>(counter)) {}

int BlockMemory::init_rows() const { return std::min(next_end_, setup_.spec.init); }

int BlockMemory::remainder_rows() const {
  return next_end_ - init_rows() - store_.size() * setup_.spec.block;
}

// Throws CapacityError, and FormatError where a restored memory has others.
void BlockMemory::set_heads(int n_heads) {
  if (n_heads_ == n_heads) return;
  if (n_heads_ != 0) {
    throw FormatError(message("cache: expected queries of ", n_heads_,
                              " heads, as the restored state has them, found ", n_heads, " heads"));
  }
  const auto n = static_cast<size_t>(n_heads);
  const CountedVector<float> none(scores_.get_allocator());
  mass_.assign(n, none);
  pending_.assign(n, none);
  n_heads_ = n_heads;
}

void BlockMemory::prepare_commit(Backend& backend) {
  if (next_end_ == end_) return;
  score_leaving();
  const SelectorSpec& spec = setup_.spec;
  while (next_end_ - spec.init - (store_.size() + new_blocks_) * spec.block >= spec.block) {
    const int first_row = spec.init + new_blocks_ * spec.block;
    represent(first_row);
    add_block(backend, first_row);
    ++new_blocks_;
  }
}

// The tokens that leave the local window take along what they got there, the first ones nothing.
void BlockMemory::score_leaving() {
  const int first = std::max(end_, setup_.spec.init);
  for (int position = first; position < next_end_; ++position) {
    const auto row = static_cast<size_t>(position - first_local_);
    for (size_t h = 0; h < mass_.size(); ++h) scores_.push_back(mass_[h][row] + pending_[h][row]);
  }
}

// Every query head names a block by the mean of the keys that got most from it.
void BlockMemory::represent(int first_row) {
  const SelectorSpec& spec = setup_.spec;
  const size_t n_scored = static_cast<size_t>(first_row - spec.init);
  const auto dim = static_cast<size_t>(setup_.key_dim);
  const auto heads = static_cast<size_t>(n_heads_);
  const size_t begin = representatives_.size();
  const size_t end = begin + heads * dim;
  if (end > representatives_.capacity()) representatives_.reserve(end + end / 8);
  representatives_.resize(end);
  std::vector<float> scores(static_cast<size_t>(spec.block));
  std::vector<double> mean(dim);
  for (size_t h = 0; h < heads; ++h) {
    for (size_t r = 0; r < scores.size(); ++r) {
      scores[r] = orderly(scores_[(n_scored + r) * heads + h]);
    }
    const std::vector<int32_t> best = top_rows(scores, spec.representatives);
    const auto kv_head = static_cast<int>(h) / group();
    std::ranges::fill(mean, 0.0);
    for (const int32_t row : best) {
      const uint16_t* key =
          keys_.data() + int64_t{first_row + row} * width(false) + kv_head * setup_.key_dim;
      for (size_t c = 0; c < dim; ++c) mean[c] += half_to_float(key[c]);
    }
    for (size_t c = 0; c < dim; ++c) {
      representatives_[begin + h * dim + c] =
          float_to_half(static_cast<float>(mean[c] / static_cast<double>(best.size())));
    }
  }
}

void BlockMemory::add_block(Backend& backend, int first_row) {
  CountedVector<std::byte> record(keys_.get_allocator());
  record.resize(store_.record_bytes());
  SealJobs jobs(keys_.get_allocator());
  std::byte* at = record.data();
  for (const bool values : {false, true}) {
    const int dim = values ? setup_.value_dim : setup_.key_dim;
    const uint16_t* rows = (values ? values_ : keys_).data() + int64_t{first_row} * width(values);
    for (int h = 0; h < setup_.n_kv_heads; ++h) {
      const PageFormat& format = (values ? setup_.values : setup_.keys)[static_cast<size_t>(h)];
      for (int page = 0; page < setup_.pages_per_block(); ++page) {
        jobs.push_back({.format = format,
                        .f16 = rows + int64_t{page} * kPageTokens * width(values) + h * dim,
                        .stride = width(values),
                        .n_rows = kPageTokens,
                        .width = dim,
                        .page = at});
        at += end_of_page(format);
      }
    }
  }
  if (backend.seal(jobs) >= 0) throw Error("cache: the backend refused to code finite values");
  store_.prepare(std::move(record));
}

void BlockMemory::finish_commit() noexcept {
  const SelectorSpec& spec = setup_.spec;
  const bool few = next_end_ - end_ <= kFewRows;
  const int gone = new_blocks_ * spec.block;
  if (gone > 0) {
    erase_rows(&keys_, spec.init, gone, width(false));
    erase_rows(&values_, spec.init, gone, width(true));
    erase_rows(&scores_, 0, gone, n_heads_);
    store_.finish();
    new_blocks_ = 0;
  }
  end_ = next_end_;
  for (size_t h = 0; h < mass_.size(); ++h) {
    for (size_t r = 0; r < pending_[h].size(); ++r) mass_[h][r] += pending_[h][r];
    std::ranges::fill(pending_[h], 0.0f);
  }
  if (!few) return;
  const auto rows = static_cast<size_t>(spec.init + spec.block + kFewRows);
  shrink(&keys_, rows * static_cast<size_t>(width(false)));
  shrink(&values_, rows * static_cast<size_t>(width(true)));
  shrink(&scores_, static_cast<size_t>((spec.block + kFewRows) * n_heads_));
}

void BlockMemory::drop_local(int first_local) noexcept {
  const auto n = static_cast<size_t>(first_local - first_local_);
  first_local_ = first_local;
  for (CountedVector<CountedVector<float>>* sums : {&mass_, &pending_}) {
    for (CountedVector<float>& rows : *sums) {
      rows.erase(rows.begin(),
                 rows.begin() + static_cast<std::ptrdiff_t>(std::min(n, rows.size())));
    }
  }
}

void BlockMemory::rollback() noexcept {
  next_end_ = end_;
  new_blocks_ = 0;
  store_.cancel();
  const auto rows = static_cast<size_t>(init_rows() + remainder_rows());
  const auto cut = [](auto* memory, size_t n) {
    if (n < memory->size()) memory->resize(n);
  };
  cut(&keys_, rows * static_cast<size_t>(width(false)));
  cut(&values_, rows * static_cast<size_t>(width(true)));
  cut(&scores_, static_cast<size_t>(remainder_rows() * n_heads_));
  cut(&representatives_,
      static_cast<size_t>(store_.size()) * static_cast<size_t>(n_heads_ * setup_.key_dim));
  for (CountedVector<float>& sums : pending_) std::ranges::fill(sums, 0.0f);
}

void BlockMemory::forget(int n) noexcept {
  rollback();
  KVE_ASSERT(end_ == 0);
  for (CountedVector<CountedVector<float>>* sums : {&mass_, &pending_}) {
    for (CountedVector<float>& rows : *sums) {
      if (static_cast<size_t>(n) < rows.size()) rows.resize(static_cast<size_t>(n));
    }
  }
}

void BlockMemory::clear() noexcept {
  store_.clear();
  end_ = next_end_ = new_blocks_ = first_local_ = 0;
  keys_.clear();
  values_.clear();
  scores_.clear();
  representatives_.clear();
  retrieved_.clear();
  for (CountedVector<float>& rows : mass_) rows.clear();
  for (CountedVector<float>& rows : pending_) rows.clear();
}

ReadPath BlockMemory::read_path(const Backend& backend, Precision precision) const {
  ReadPath worst = ReadPath::fused;
  for (const bool values : {false, true}) {
    for (const PageFormat& format : values ? setup_.values : setup_.keys) {
      SideView side;
      side.width = side.n_channels = values ? setup_.value_dim : setup_.key_dim;
      side.format = format;
      worst = std::max(worst, backend.read_path(side, precision));
    }
  }
  return worst;
}

void BlockMemory::count(CacheStats* stats) const {
  int64_t codes = 0;
  for (const std::vector<PageFormat>* side : {&setup_.keys, &setup_.values}) {
    for (const PageFormat& format : *side) {
      codes += setup_.pages_per_block() * static_cast<int64_t>(code_bytes(format));
    }
  }
  stats->codes += store_.resident() * codes;
  stats->scales += store_.resident() * (static_cast<int64_t>(store_.record_bytes()) - codes);
  stats->offloaded += store_.offloaded_bytes();
  stats->tail += static_cast<int64_t>((keys_.capacity() + values_.capacity()) * sizeof(uint16_t));
  size_t meta = store_.meta_bytes() + scores_.capacity() * sizeof(float) +
                representatives_.capacity() * sizeof(uint16_t) +
                retrieved_.capacity() * sizeof(int32_t);
  for (const CountedVector<CountedVector<float>>* sums : {&mass_, &pending_}) {
    meta += sums->capacity() * sizeof(CountedVector<float>);
    for (const CountedVector<float>& rows : *sums) meta += rows.capacity() * sizeof(float);
  }
  stats->meta += static_cast<int64_t>(meta);
}

}  // namespace kve
