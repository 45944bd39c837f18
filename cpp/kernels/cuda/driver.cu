#include "kernels/cuda/driver.h"

#include "base/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/exec.h"

namespace kve::cuda {
namespace driver {
namespace {

// Compute capability 7.5, the first with the matrix products of warp.h.
constexpr int kLeastMajor = 7;
constexpr int kLeastMinor = 5;
constexpr size_t kSharedByDefault = 48 * 1024;

std::string version(int number) { return message(number / 1000, ".", number % 1000 / 10); }

void check_driver() {
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "the version of the driver");
  if (driver == 0) throw DeviceError("cuda: expected an NVIDIA driver, found none");
  int runtime = 0;
  check(cudaRuntimeGetVersion(&runtime), "the version of the runtime");
  // Within a major version newer runtimes work with older drivers (CUDA Compatibility).
  if (driver / 1000 < runtime / 1000) {
    throw DeviceError(message("cuda: expected a driver for CUDA ", runtime / 1000,
                              " or newer, found one for CUDA ", version(driver)));
  }
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && count == 0)) {
    throw DeviceError("cuda: expected an NVIDIA GPU, found none");
  }
  check(counted, "the number of GPUs");
}

void allow_shared(const Operation& operation) {
  if (operation.shared_bytes <= kSharedByDefault) return;
  check(cudaFuncSetAttribute(operation.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(operation.shared_bytes)),
        operation.name);
}

dim3 grid_of(const Operation& operation) {
  return {operation.grid.x, operation.grid.y, operation.grid.z};
}

}  // namespace

Properties find_device() {
  check_driver();
  int index = 0;
  check(cudaGetDevice(&index), "the current GPU");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "the properties of the GPU");
  if (properties.major < kLeastMajor ||
      (properties.major == kLeastMajor && properties.minor < kLeastMinor)) {
    throw DeviceError(message("cuda: expected a GPU of compute capability ", kLeastMajor, ".",
                              kLeastMinor, " or newer, found ", properties.name, " with ",
                              properties.major, ".", properties.minor));
  }
  return {properties.name, properties.multiProcessorCount, properties.sharedMemPerBlockOptin};
}

std::byte* allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t result = cudaMalloc(&memory, bytes);
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // so that nobody else finds it
    size_t free_bytes = 0;
    size_t total = 0;
    check(cudaMemGetInfo(&free_bytes, &total), "the free memory");
    throw CapacityError(message("cuda: expected ", bytes, " bytes of GPU memory, found ",
                                free_bytes, " free of ", total));
  }
  check(result, "allocate");
  return static_cast<std::byte*>(memory);
}

void release(std::byte* memory) noexcept { cudaFree(memory); }

std::byte* lock(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t result = cudaMallocHost(&memory, bytes);
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw CapacityError(message("cuda: expected ", bytes, " bytes of locked memory, found fewer"));
  }
  check(result, "lock memory");
  return static_cast<std::byte*>(memory);
}

void unlock(std::byte* memory) noexcept { cudaFreeHost(memory); }

void issue(const Operation& operation, const std::byte* args) {
  switch (operation.kind) {
    case Operation::Kind::kernel: {
      allow_shared(operation);
      void* argument = const_cast<std::byte*>(args);
      check(cudaLaunchKernel(operation.kernel, grid_of(operation), dim3(operation.threads),
                             &argument, operation.shared_bytes, cudaStreamPerThread),
            operation.name);
      return;
    }
    case Operation::Kind::upload:
      check(cudaMemcpyAsync(operation.to, operation.from, operation.bytes, cudaMemcpyHostToDevice,
                            cudaStreamPerThread),
            "upload");
      return;
    case Operation::Kind::copy:
      check(cudaMemcpyAsync(operation.to, operation.from, operation.bytes, cudaMemcpyDeviceToDevice,
                            cudaStreamPerThread),
            "copy");
      return;
    case Operation::Kind::zero:
      check(cudaMemsetAsync(operation.to, 0, operation.bytes, cudaStreamPerThread), "zero");
      return;
  }
}

void upload(void* to, const void* from, size_t bytes) {
  // From memory that is not locked the call returns when the bytes have been read.
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, cudaStreamPerThread), "upload");
}

void download(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, cudaStreamPerThread), "download");
  check(cudaStreamSynchronize(cudaStreamPerThread), "download");
}

void synchronize() { check(cudaDeviceSynchronize(), "synchronize"); }

// ---- graphs ----

struct Graph::State {
  cudaGraph_t graph{};
  cudaGraphExec_t exec{};

  ~State() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
  // After `last`, if there is one; which becomes the new node.
  void add(const Operation& operation, const std::byte* args, cudaGraphNode_t* last) {
    const size_t n_before = *last != nullptr ? 1 : 0;
    cudaGraphNode_t before = *last;
    if (operation.kind == Operation::Kind::kernel) {
      allow_shared(operation);
      void* argument = const_cast<std::byte*>(args);
      cudaKernelNodeParams params{};
      params.func = const_cast<void*>(operation.kernel);
      params.gridDim = grid_of(operation);
      params.blockDim = dim3(operation.threads);
      params.sharedMemBytes = static_cast<unsigned>(operation.shared_bytes);
      params.kernelParams = &argument;
      check(cudaGraphAddKernelNode(last, graph, &before, n_before, &params), operation.name);
    } else if (operation.kind == Operation::Kind::zero) {
      cudaMemsetParams params{};
      params.dst = operation.to;
      params.elementSize = 1;
      params.width = operation.bytes;
      params.height = 1;
      check(cudaGraphAddMemsetNode(last, graph, &before, n_before, &params), "zero");
    } else {
      const auto kind = operation.kind == Operation::Kind::upload ? cudaMemcpyHostToDevice
                                                                  : cudaMemcpyDeviceToDevice;
      check(cudaGraphAddMemcpyNode1D(last, graph, &before, n_before, operation.to, operation.from,
                                     operation.bytes, kind),
            "copy");
    }
  }
};

Graph::Graph(std::span<const Operation> operations, std::span<const std::byte* const> args)
    : state_(std::make_unique<State>()) {
  check(cudaGraphCreate(&state_->graph, 0), "a graph");
  cudaGraphNode_t last = nullptr;
  for (size_t i = 0; i < operations.size(); ++i) state_->add(operations[i], args[i], &last);
  check(cudaGraphInstantiate(&state_->exec, state_->graph, 0), "a graph");
}

Graph::~Graph() = default;

void Graph::launch() { check(cudaGraphLaunch(state_->exec, cudaStreamPerThread), "a graph"); }

}  // namespace driver

struct DeviceTimer::Events {
  cudaEvent_t first{};
  cudaEvent_t last{};
};

DeviceTimer::DeviceTimer() : events_(std::make_unique<Events>()) {
  check(cudaEventCreate(&events_->first), "a timer");
  check(cudaEventCreate(&events_->last), "a timer");
}

DeviceTimer::~DeviceTimer() {
  cudaEventDestroy(events_->first);
  cudaEventDestroy(events_->last);
}

void DeviceTimer::start() {
  check(cudaEventRecord(events_->first, cudaStreamPerThread), "a timer");
}

double DeviceTimer::stop_ms() {
  check(cudaEventRecord(events_->last, cudaStreamPerThread), "a timer");
  check(cudaEventSynchronize(events_->last), "a timer");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, events_->first, events_->last), "a timer");
  return static_cast<double>(ms);
}

}  // namespace kve::cuda
