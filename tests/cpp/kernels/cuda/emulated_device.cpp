// kernels/cuda/device.h where there is no GPU: the device's memory is the host's.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "base/error.h"
#include "kernels/cuda/device.h"

namespace kve::cuda {

constexpr std::align_val_t kAlignment{256};

Device::Device() : name_("emulated"), multiprocessors_(4), block_memory_(99 * 1024) {}

std::byte* Device::allocate(size_t bytes) {
  if (bytes > size_t{1} << 40) throw CapacityError("emulated device: out of memory");
  auto* memory = static_cast<std::byte*>(::operator new(bytes, kAlignment));
  std::memset(memory, 0xff, bytes);  // NaN
  count(bytes);
  return memory;
}

void Device::count(size_t bytes) {
  live_ += bytes;
  peak_ = std::max(peak_.load(), live_.load());
}

void Device::release(std::byte* memory, size_t bytes) noexcept {
  ::operator delete(memory, kAlignment);
  live_ -= bytes;
}

void Device::upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void Device::download(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void Device::copy(void* to, const void* from, size_t bytes) { std::memmove(to, from, bytes); }
void Device::zero(void* to, size_t bytes) { std::memset(to, 0, bytes); }
void Device::synchronize() {}

// The host's time: emulation says nothing about a device's.
struct DeviceTimer::Events {
  std::chrono::steady_clock::time_point first;
};
DeviceTimer::DeviceTimer() : events_(std::make_unique<Events>()) {}
DeviceTimer::~DeviceTimer() = default;
void DeviceTimer::start() { events_->first = std::chrono::steady_clock::now(); }
double DeviceTimer::stop_ms() {
  const auto passed = std::chrono::steady_clock::now() - events_->first;
  return std::chrono::duration<double, std::milli>(passed).count();
}

}  // namespace kve::cuda
