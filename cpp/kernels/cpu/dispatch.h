// Chooses the instruction set.
#pragma once

#include <string_view>

#include "kernels/cpu/kernels.h"

namespace kve {

// The table of `isa`, or of the fastest set this machine has when it is empty. Throws ConfigError
// for an unknown or unavailable name, naming those that are.
const Kernels& find_kernels(std::string_view isa);
// The same, unless the environment variable KVENGINE_ISA names another.
const Kernels& choose_kernels(std::string_view isa);

}  // namespace kve
