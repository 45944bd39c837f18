// cache/blocks/: InfLLM (arXiv 2402.04617). A layer attends to the newest tokens as they are; what
// leaves this local window becomes blocks, of which a span of queries retrieves a few.
//
// This file: where the bytes of the blocks lie, in memory or in a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"
#include "base/temporary_file.h"

namespace kve {

// The file of a cache and its forks. Thread-safe.
class BlockFile {
 public:
  // `folder` as in TemporaryFile.
  explicit BlockFile(const std::string& folder) : file_(folder) {}

  // A range of the file that nobody else writes to, until it is given back.
  int64_t take(size_t bytes);
  void give_back(int64_t offset, size_t bytes) noexcept;
  void write(int64_t offset, std::span<const std::byte> bytes) { file_.write(offset, bytes); }
  void read(int64_t offset, std::span<std::byte> bytes) const { file_.read(offset, bytes); }

 private:
  TemporaryFile file_;
  std::mutex mutex_;
  int64_t end_ = 0;
  std::map<size_t, std::vector<int64_t>> free_;  // offsets by size
};

// The blocks of one layer: records of one size, which never change and are shared by forks.
class BlockStore {
 public:
  // `file`: null, and all blocks stay in memory; else `resident` of them at most, those that were
  // fetched last.
  BlockStore(size_t record_bytes, int resident, std::shared_ptr<BlockFile> file,
             const std::shared_ptr<MemoryCounter>& counter);
  // Shares the blocks; of a file, none is resident in the copy.
  BlockStore(const BlockStore& other);
  BlockStore(BlockStore&&) noexcept = default;
  BlockStore& operator=(const BlockStore&) = delete;

  size_t record_bytes() const { return record_bytes_; }
  int size() const { return size_; }
  // Adds a block in two steps: what can fail, for one block after the other, then what cannot.
  // Throws CapacityError and IoError.
  void prepare(CountedVector<std::byte> record);
  void finish() noexcept { size_ = static_cast<int>(blocks_.size()); }
  void cancel() noexcept { blocks_.resize(static_cast<size_t>(size_)); }
  void clear() noexcept;

  // The records of some blocks, each named once, valid until the next call. With a file there are
  // `resident` of them at most. Throws CapacityError and IoError.
  std::span<const std::byte* const> fetch(std::span<const int32_t> blocks);
  // A copy of one record, which changes nothing.
  void read(int block, std::span<std::byte> record) const;

  bool uses_file() const { return file_ != nullptr; }
  int resident() const {  // blocks in memory
    return uses_file() ? static_cast<int>(cached_.size()) : size_;
  }
  int64_t offloaded_bytes() const {
    return uses_file() ? size_ * static_cast<int64_t>(record_bytes_) : 0;
  }
  size_t meta_bytes() const;

 private:
  // In memory or in the file, whose range it gives back.
  struct Block {
    Block(const CountedAllocator<std::byte>& allocator, size_t size_)
        : bytes(allocator), size(size_) {}
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    ~Block() {
      if (file != nullptr) file->give_back(offset, size);
    }

    CountedVector<std::byte> bytes;
    std::shared_ptr<BlockFile> file;
    int64_t offset = 0;
    size_t size;
  };
  struct Cached {
    int32_t block;  // -1: none
    uint64_t used;  // number of the fetch
    CountedVector<std::byte> bytes;
  };
  Cached* room();

  size_t record_bytes_;
  size_t most_cached_;
  std::shared_ptr<BlockFile> file_;
  int size_ = 0;
  uint64_t fetches_ = 0;
  CountedVector<std::shared_ptr<const Block>> blocks_;  // size_, then those that are prepared
  CountedVector<Cached> cached_;
  CountedVector<const std::byte*> fetched_;
};

}  // namespace kve
