#include "cache/blocks/block_store.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace kve {

int64_t BlockFile::take(size_t bytes) {
  const std::lock_guard lock(mutex_);
  std::vector<int64_t>& free = free_[bytes];
  // Room for the ranges that will be given back, which must not fail.
  const size_t ranges = static_cast<size_t>(end_) / bytes + 1;
  if (free.capacity() < ranges) free.reserve(2 * ranges);
  if (free.empty()) return std::exchange(end_, end_ + static_cast<int64_t>(bytes));
  const int64_t offset = free.back();
  free.pop_back();
  return offset;
}

void BlockFile::give_back(int64_t offset, size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  free_.find(bytes)->second.push_back(offset);
}

BlockStore::BlockStore(size_t record_bytes, int resident, std::shared_ptr<BlockFile> file,
                       const std::shared_ptr<MemoryCounter>& counter)
    : record_bytes_(record_bytes),
      most_cached_(static_cast<size_t>(resident)),
      file_(std::move(file)),
      blocks_(CountedAllocator<std::shared_ptr<const Block>>(counter)),
      cached_(CountedAllocator<Cached>(counter)),
      fetched_(CountedAllocator<const std::byte*>(counter)) {}

BlockStore::BlockStore(const BlockStore& other)
    : record_bytes_(other.record_bytes_),
      most_cached_(other.most_cached_),
      file_(other.file_),
      size_(other.size_),
      blocks_(other.blocks_.begin(), other.blocks_.begin() + other.size_,
              other.blocks_.get_allocator()),
      cached_(other.cached_.get_allocator()),
      fetched_(other.fetched_.get_allocator()) {}

void BlockStore::prepare(CountedVector<std::byte> record) {
  KVE_ASSERT(record.size() == record_bytes_);
  const size_t n = blocks_.size();
  if (n == blocks_.capacity()) blocks_.reserve(n + n / 8 + 8);
  auto block = std::make_shared<Block>(record.get_allocator(), record_bytes_);
  if (file_ == nullptr) {
    block->bytes.swap(record);
  } else {
    block->offset = file_->take(record_bytes_);
    block->file = file_;
    file_->write(block->offset, record);
  }
  blocks_.push_back(std::move(block));
}

void BlockStore::clear() noexcept {
  blocks_.clear();
  cached_.clear();
  size_ = 0;
}

// The place of the block that was not used for the longest time, or a new one.
BlockStore::Cached* BlockStore::room() {
  if (cached_.size() < most_cached_) {
    cached_.reserve(most_cached_);
    CountedVector<std::byte> bytes(fetched_.get_allocator());
    bytes.resize(record_bytes_);
    return &cached_.emplace_back(Cached{-1, 0, std::move(bytes)});
  }
  Cached* oldest = &*std::ranges::min_element(cached_, {}, &Cached::used);
  KVE_ASSERT(oldest->used < fetches_);
  return oldest;
}

std::span<const std::byte* const> BlockStore::fetch(std::span<const int32_t> blocks) {
  fetched_.resize(blocks.size());
  if (file_ == nullptr) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      fetched_[i] = blocks_[static_cast<size_t>(blocks[i])]->bytes.data();
    }
    return fetched_;
  }
  KVE_ASSERT(blocks.size() <= most_cached_);
  ++fetches_;
  const auto find = [&](int32_t block) {
    return std::ranges::find(cached_, block, &Cached::block);
  };
  // What is there first, so that it stays.
  for (const int32_t block : blocks) {
    if (const auto at = find(block); at != cached_.end()) at->used = fetches_;
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    auto at = find(blocks[i]);
    if (at == cached_.end()) {
      Cached* place = room();
      place->block = -1;
      read(blocks[i], place->bytes);
      place->block = blocks[i];
      place->used = fetches_;
      at = cached_.begin() + (place - cached_.data());
    }
    fetched_[i] = at->bytes.data();
  }
  return fetched_;
}

void BlockStore::read(int block, std::span<std::byte> record) const {
  const Block& from = *blocks_[static_cast<size_t>(block)];
  if (from.file == nullptr) {
    std::ranges::copy(from.bytes, record.begin());
  } else {
    from.file->read(from.offset, record);
  }
}

size_t BlockStore::meta_bytes() const {
  return blocks_.capacity() * sizeof(std::shared_ptr<const Block>) +
         cached_.capacity() * sizeof(Cached) + fetched_.capacity() * sizeof(const std::byte*);
}

}  // namespace kve
