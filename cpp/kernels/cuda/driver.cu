#include "kernels/cuda/driver.h"

#include <vector>

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

// Where operations aside go when they are issued one by one. There is one pass at a time.
class Aside {
 public:
  // Lives as long as the program: at its end CUDA may be gone before.
  static Aside& get() {
    static auto* made = new Aside;
    return *made;
  }
  // A stream that comes after what this thread has launched.
  cudaStream_t begin() {
    check(cudaEventRecord(event_, cudaStreamPerThread), "a stream");
    check(cudaStreamWaitEvent(stream_, event_, 0), "a stream");
    busy_ = true;
    return stream_;
  }
  void meet() {
    if (!busy_) return;
    check(cudaEventRecord(event_, stream_), "a stream");
    check(cudaStreamWaitEvent(cudaStreamPerThread, event_, 0), "a stream");
    busy_ = false;
  }

 private:
  Aside() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "a stream");
  }
  cudaStream_t stream_{};
  cudaEvent_t event_{};
  bool busy_ = false;
};

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
      const cudaStream_t stream = operation.aside ? Aside::get().begin() : cudaStreamPerThread;
      check(cudaLaunchKernel(operation.kernel, grid_of(operation), dim3(operation.threads),
                             &argument, operation.shared_bytes, stream),
            operation.name);
      return;
    }
    case Operation::Kind::upload:
      check(cudaMemcpyAsync(operation.to, operation.from, operation.bytes, cudaMemcpyHostToDevice,
                            cudaStreamPerThread),
            "upload");
      return;
    case Operation::Kind::copy:
      check(cudaMemcpyAsync(operation.to, operation.from, operation.bytes, cudaMemcpyDefault,
                            cudaStreamPerThread),
            "copy");
      return;
    case Operation::Kind::zero:
      check(cudaMemsetAsync(operation.to, 0, operation.bytes, cudaStreamPerThread), "zero");
      return;
    case Operation::Kind::meet:
      return Aside::get().meet();
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
  cudaGraphNode_t last{};
  cudaGraphNode_t aside{};  // until they meet

  ~State() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
  // Operations follow the one before; those aside, and what comes after a meeting, two of them.
  void add(const Operation& operation, const std::byte* args) {
    std::vector<cudaGraphNode_t> before;
    if (last != nullptr) before.push_back(last);
    const bool meets = operation.kind == Operation::Kind::meet;
    if (meets && aside == nullptr) return;
    if (aside != nullptr && (meets || operation.aside)) before.push_back(aside);
    (operation.aside ? aside : last) = add(operation, args, before);
    if (meets) aside = nullptr;
  }
  cudaGraphNode_t add(const Operation& operation, const std::byte* args,
                      const std::vector<cudaGraphNode_t>& before) {
    cudaGraphNode_t node{};
    const size_t n = before.size();
    switch (operation.kind) {
      case Operation::Kind::kernel: {
        allow_shared(operation);
        void* argument = const_cast<std::byte*>(args);
        cudaKernelNodeParams params{};
        params.func = const_cast<void*>(operation.kernel);
        params.gridDim = grid_of(operation);
        params.blockDim = dim3(operation.threads);
        params.sharedMemBytes = static_cast<unsigned>(operation.shared_bytes);
        params.kernelParams = &argument;
        check(cudaGraphAddKernelNode(&node, graph, before.data(), n, &params), operation.name);
        break;
      }
      case Operation::Kind::zero: {
        cudaMemsetParams params{};
        params.dst = operation.to;
        params.elementSize = 1;
        params.width = operation.bytes;
        params.height = 1;
        check(cudaGraphAddMemsetNode(&node, graph, before.data(), n, &params), "zero");
        break;
      }
      case Operation::Kind::upload:
      case Operation::Kind::copy:
        check(cudaGraphAddMemcpyNode1D(&node, graph, before.data(), n, operation.to, operation.from,
                                       operation.bytes, cudaMemcpyDefault),
              operation.kind == Operation::Kind::copy ? "copy" : "upload");
        break;
      case Operation::Kind::meet:
        check(cudaGraphAddEmptyNode(&node, graph, before.data(), n), "a graph");
        break;
    }
    return node;
  }
};

Graph::Graph(std::span<const Operation> operations, std::span<const std::byte* const> args)
    : state_(std::make_unique<State>()) {
  check(cudaGraphCreate(&state_->graph, 0), "a graph");
  for (size_t i = 0; i < operations.size(); ++i) state_->add(operations[i], args[i]);
  check(cudaGraphInstantiate(&state_->exec, state_->graph, 0), "a graph");
}

Graph::~Graph() = default;

// A graph ends when all of it has, what is aside as well.
void Graph::launch() {
  Aside::get().meet();
  check(cudaGraphLaunch(state_->exec, cudaStreamPerThread), "a graph");
}

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
