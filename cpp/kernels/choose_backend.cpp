#include "kernels/choose_backend.h"

#include <utility>

#include "base/byte_size.h"
#include "base/error.h"
#include "base/printable.h"
#if defined(KVE_HAVE_CUDA)
#include "kernels/cuda/cuda_backend.h"
#endif

namespace kve {
namespace {

struct DeviceName {
  std::string_view kind;
  int64_t cache_limit = 0;  // bytes; 0: none
};

DeviceName parse_device(std::string_view text) {
  constexpr std::string_view kLimit = "cache=";
  const size_t colon = text.find(':');
  DeviceName name{text.substr(0, colon)};
  if (name.kind != "cpu" && name.kind != "cuda" && name.kind != "auto") {
    throw ConfigError(message("device: expected cpu, cuda or auto, found ", quoted(text)));
  }
  if (colon == std::string_view::npos) return name;
  const std::string_view rest = text.substr(colon + 1);
  const double bytes = rest.starts_with(kLimit) ? parse_byte_size(rest.substr(kLimit.size())) : -1;
  if (bytes < 1 || name.kind == "cpu") {
    throw ConfigError(
        message("device: expected a limit only of a GPU's memory, like cuda:cache=8GiB, found ",
                quoted(text)));
  }
  name.cache_limit = static_cast<int64_t>(bytes);
  return name;
}

std::unique_ptr<Backend> make_gpu_backend([[maybe_unused]] std::unique_ptr<Backend> host,
                                          [[maybe_unused]] int64_t cache_limit) {
#if defined(KVE_HAVE_CUDA)
  return std::make_unique<cuda::CudaBackend>(std::move(host), static_cast<size_t>(cache_limit));
#else
  throw DeviceError("device cuda: expected a build with CUDA, found one for the CPU alone");
#endif
}

}  // namespace

ChosenBackend choose_backend(std::string_view device, int n_threads, std::string_view isa) {
  const DeviceName name = parse_device(device);
  std::string note;
  if (name.kind != "cpu") {
    try {
      return {make_gpu_backend(make_cpu_backend(n_threads, isa), name.cache_limit), true, {}};
    } catch (const DeviceError& error) {
      if (name.kind == "cuda") throw;
      note = message("device auto: the CPU computes (", error.what(), ")");
    }
  }
  return {make_cpu_backend(n_threads, isa), false, std::move(note)};
}

}  // namespace kve
