// kernels/cuda/driver.h where there is no GPU: the device's memory is the host's.
#include <chrono>
#include <cstring>
#include <map>
#include <new>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/emulation.h"

namespace kve::cuda {
namespace driver {
namespace {

constexpr std::align_val_t kAlignment{256};

// Operations aside that have not been done yet.
struct Waiting {
  Operation operation;
  std::vector<std::byte> args;
};
std::vector<Waiting> aside;

void do_aside() {
  for (const Waiting& waiting : aside)
    waiting.operation.run(waiting.operation, waiting.args.data());
  aside.clear();
}

std::map<const std::byte*, size_t> locked;

}  // namespace

Properties find_device() { return {"emulated", 4, 99 * 1024}; }

std::byte* allocate(size_t bytes) {
  if (bytes > size_t{1} << 40) throw CapacityError("emulated device: out of memory");
  auto* memory = static_cast<std::byte*>(::operator new(bytes, kAlignment));
  std::memset(memory, 0xff, bytes);  // NaN
  return memory;
}
void release(std::byte* memory) noexcept {
  do_aside();
  ::operator delete(memory, kAlignment);
}
std::byte* lock(size_t bytes) {
  if (bytes > emulation::most_locked || emulation::locked_bytes > emulation::most_locked - bytes) {
    throw CapacityError("emulated device: out of locked memory");
  }
  std::byte* memory = allocate(bytes);
  locked.emplace(memory, bytes);
  emulation::locked_bytes += bytes;
  return memory;
}
void unlock(std::byte* memory) noexcept {
  emulation::locked_bytes -= locked[memory];
  locked.erase(memory);
  release(memory);
}

void issue(const Operation& operation, const std::byte* args) {
  switch (operation.kind) {
    case Operation::Kind::kernel:
      if (!operation.aside || !emulation::reversed) return operation.run(operation, args);
      aside.push_back({operation, {args, args + operation.bytes}});
      return;
    case Operation::Kind::meet:
      return do_aside();
    case Operation::Kind::upload:
    case Operation::Kind::copy:
      std::memcpy(operation.to, operation.from, operation.bytes);
      return;
    case Operation::Kind::zero:
      std::memset(operation.to, 0, operation.bytes);
      return;
  }
}
void upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void download(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void synchronize() { do_aside(); }

// Arguments are copied when a graph is made, as CUDA does.
struct Graph::State {
  std::vector<Operation> operations;
  std::vector<std::vector<std::byte>> args;
};
Graph::Graph(std::span<const Operation> operations, std::span<const std::byte* const> args)
    : state_(std::make_unique<State>()) {
  state_->operations.assign(operations.begin(), operations.end());
  for (size_t i = 0; i < operations.size(); ++i) {
    const bool has_args = operations[i].kind == Operation::Kind::kernel;
    state_->args.emplace_back(args[i], args[i] + (has_args ? operations[i].bytes : 0));
  }
}
Graph::~Graph() = default;
void Graph::launch() {
  do_aside();
  for (size_t i = 0; i < state_->operations.size(); ++i) {
    issue(state_->operations[i], state_->args[i].data());
  }
  do_aside();
}

}  // namespace driver

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
