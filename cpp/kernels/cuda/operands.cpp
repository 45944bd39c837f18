#include "kernels/cuda/operands.h"

#include <algorithm>

namespace kve::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kLeastBytes = 1 << 20;

}  // namespace

Operands::~Operands() {
  for (const auto& [place, block] : kept_) device_.release(block.data, block.bytes);
  for (const Block& block : blocks_) device_.release(block.data, block.bytes);
}

void Operands::keep(std::span<const std::byte> constants) {
  if (find(constants.data()) != nullptr) return;
  const Block block{device_.allocate(constants.size()), constants.size()};
  kept_.emplace(constants.data(), block);
  device_.upload(block.data, constants.data(), constants.size());
}

void Operands::begin() {
  used_ = 0;
  results_.clear();
  if (blocks_.size() <= 1) return;
  // Next time one block is enough.
  device_.synchronize();
  size_t total = 0;
  for (const Block& block : blocks_) {
    total += block.bytes;
    device_.release(block.data, block.bytes);
  }
  blocks_.clear();
  blocks_.push_back({device_.allocate(total), total});
}

std::byte* Operands::scratch(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (blocks_.empty() || used_ + bytes > blocks_.back().bytes) {
    const size_t size = std::max(bytes, kLeastBytes);
    blocks_.push_back({device_.allocate(size), size});
    used_ = 0;
  }
  std::byte* memory = blocks_.back().data + used_;
  used_ += bytes;
  return memory;
}

const std::byte* Operands::find(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  if (const Twin twin = twins_.find(address); twin.bytes > 0) return twin.at(address);
  auto after = kept_.upper_bound(byte);
  if (after == kept_.begin()) return nullptr;
  const auto& [place, block] = *--after;
  const auto offset = static_cast<size_t>(byte - place);
  return offset < block.bytes ? block.data + offset : nullptr;
}

const std::byte* Operands::read_bytes(const std::byte* from, size_t bytes) {
  if (from == nullptr || bytes == 0) return nullptr;
  if (const std::byte* there = find(from)) return there;
  std::byte* to = scratch(bytes);
  device_.upload(to, from, bytes);
  return to;
}

ConstMat Operands::read(ConstMat from) {
  if (from.data == nullptr || from.rows * from.cols == 0) return from;
  if (const std::byte* there = find(from.data)) {
    return {reinterpret_cast<const float*>(there), from.rows, from.cols, from.stride};
  }
  const Mat to(scratch<float>(static_cast<size_t>(from.rows * from.cols)), from.rows, from.cols);
  const auto row = static_cast<size_t>(from.cols) * sizeof(float);
  if (from.stride == from.cols) {
    device_.upload(to.data, from.data, row * static_cast<size_t>(from.rows));
  } else {
    for (int64_t r = 0; r < from.rows; ++r) device_.upload(to.row(r), from.row(r), row);
  }
  return to;
}

Mat Operands::write(Mat to) {
  if (to.data == nullptr || to.rows * to.cols == 0) return to;
  if (const Twin twin = twins_.find(to.data); twin.bytes > 0) {
    return {reinterpret_cast<float*>(twin.at(to.data)), to.rows, to.cols, to.stride};
  }
  const Mat there(scratch<float>(static_cast<size_t>(to.rows * to.cols)), to.rows, to.cols);
  results_.push_back({to, there});
  return there;
}

Mat Operands::update(Mat to) {
  const size_t before = results_.size();
  const Mat there = write(to);
  if (results_.size() == before) return there;
  for (int64_t r = 0; r < to.rows; ++r) {
    device_.upload(there.row(r), to.row(r), static_cast<size_t>(to.cols) * sizeof(float));
  }
  return there;
}

void Operands::finish() {
  for (const Result& result : results_) {
    const auto row = static_cast<size_t>(result.host.cols) * sizeof(float);
    if (result.host.stride == result.host.cols) {
      device_.download(result.host.data, result.device.data,
                       row * static_cast<size_t>(result.host.rows));
      continue;
    }
    for (int64_t r = 0; r < result.host.rows; ++r) {
      device_.download(result.host.row(r), result.device.row(r), row);
    }
  }
  results_.clear();
}

}  // namespace kve::cuda
