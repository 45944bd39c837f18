#include "kernels/choose_backend.h"

#include <utility>

#include "base/error.h"
#if defined(KVE_HAVE_CUDA)
#include "kernels/cuda/cuda_backend.h"
#endif

namespace kve {
namespace {

std::unique_ptr<Backend> make_gpu_backend([[maybe_unused]] std::unique_ptr<Backend> host) {
#if defined(KVE_HAVE_CUDA)
  return std::make_unique<cuda::CudaBackend>(std::move(host));
#else
  throw DeviceError("device cuda: expected a build with CUDA, found one for the CPU alone");
#endif
}

}  // namespace

ChosenBackend choose_backend(std::string_view device, int n_threads, std::string_view isa) {
  if (device != "cpu" && device != "cuda" && device != "auto") {
    throw ConfigError(message("device: expected cpu, cuda or auto, found '", device, "'"));
  }
  std::string note;
  if (device != "cpu") {
    try {
      return {make_gpu_backend(make_cpu_backend(n_threads, isa)), true, {}};
    } catch (const DeviceError& error) {
      if (device == "cuda") throw;
      note = message("device auto: the CPU computes (", error.what(), ")");
    }
  }
  return {make_cpu_backend(n_threads, isa), false, std::move(note)};
}

}  // namespace kve
