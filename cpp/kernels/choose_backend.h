// The backend for a device by its name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/backend.h"

namespace kve {

struct ChosenBackend {
  std::unique_ptr<Backend> backend;
  bool is_device = false;
  std::string note;  // why "auto" has become the CPU, a sentence; else empty
};

// `device` is "cpu", "cuda" or "auto"; the last two may end with a limit of the GPU's memory for
// pages of caches, as "cuda:cache=8GiB", beyond which the coldest lie in locked memory of the host.
// The rest is as for make_cpu_backend(), and for the work that a device leaves to the CPU. Throws
// ConfigError, and DeviceError where the device is not there or this build does not know it.
ChosenBackend choose_backend(std::string_view device, int n_threads, std::string_view isa);

}  // namespace kve
