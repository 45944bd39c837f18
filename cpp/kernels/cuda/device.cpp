#include "kernels/cuda/device.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/cuda/launch_queue.h"

namespace kve::cuda {
namespace {

constexpr size_t kMostStaged = 1 << 20;   // bytes of what is sent within a pass
constexpr size_t kBounceBytes = 4 << 20;  // locked memory for what is fetched

}  // namespace

Device::Device() : properties_(driver::find_device()), queue_(std::make_unique<LaunchQueue>()) {}

Device::~Device() {
  if (bounce_ != nullptr) driver::unlock(bounce_);
}

void Device::count(size_t bytes) {
  const size_t now = live_ += bytes;
  size_t peak = peak_;
  while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
  }
}

std::byte* Device::allocate(size_t bytes) {
  std::byte* memory = driver::allocate(bytes);
  count(bytes);
  return memory;
}

void Device::release(std::byte* memory, size_t bytes) noexcept {
  try {
    flush();  // what still uses it
  } catch (const DeviceError&) {
    // The device has failed, which whoever uses it next is told.
  }
  driver::release(memory);
  live_ -= bytes;
}

void Device::flush() {
  if (LaunchQueue* queue = LaunchQueue::active()) queue->flush();
}

void Device::upload(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  LaunchQueue* queue = LaunchQueue::active();
  std::byte* staged = nullptr;
  if (queue != nullptr && bytes <= kMostStaged) staged = queue->stage(bytes);
  if (staged == nullptr) {
    flush();
    return driver::upload(to, from, bytes);
  }
  std::memcpy(staged, from, bytes);
  submit({.kind = Operation::Kind::upload, .to = to, .from = staged, .bytes = bytes}, nullptr);
}

void Device::download(void* to, const void* from, size_t bytes) {
  flush();
  const std::lock_guard lock(bounce_mutex_);
  if (bytes <= kBounceBytes && bounce_ == nullptr) bounce_ = driver::lock(kBounceBytes);
  if (bytes > kBounceBytes) return driver::download(to, from, bytes);
  driver::download(bounce_, from, bytes);
  std::memcpy(to, bounce_, bytes);
  if (LaunchQueue* queue = LaunchQueue::active()) queue->waited();
}

void Device::copy(void* to, const void* from, size_t bytes) {
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  const auto distance = static_cast<size_t>(target < source ? source - target : target - source);
  if (distance == 0) return;
  // Places that overlap, piece by piece, none of which is read after it was written.
  const size_t pieces = (bytes + distance - 1) / distance;
  for (size_t i = 0; i < pieces; ++i) {
    const size_t at = (target < source ? i : pieces - 1 - i) * distance;
    const size_t n = std::min(distance, bytes - at);
    submit({.kind = Operation::Kind::copy, .to = target + at, .from = source + at, .bytes = n},
           nullptr);
  }
}

void Device::zero(void* to, size_t bytes) {
  if (bytes > 0) submit({.kind = Operation::Kind::zero, .to = to, .bytes = bytes}, nullptr);
}

void Device::meet() { submit({.kind = Operation::Kind::meet}, nullptr); }

void Device::synchronize() {
  flush();
  driver::synchronize();
  if (LaunchQueue* queue = LaunchQueue::active()) queue->waited();
}

void Device::begin_pass() { queue_->begin(); }

bool Device::in_pass() const { return LaunchQueue::active() == queue_.get(); }

void Device::end_pass() {
  if (!in_pass()) return;
  queue_->flush();
  driver::synchronize();
  queue_->waited();
  queue_->end();
}

void Device::cancel_pass() noexcept {
  try {
    end_pass();
  } catch (const DeviceError&) {
    queue_->end();
  }
}

int64_t Device::replays() const { return queue_->replays(); }

}  // namespace kve::cuda
