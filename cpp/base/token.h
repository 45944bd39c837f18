// An entry of a model's vocabulary.
#pragma once

#include <cstdint>

namespace kve {

using Token = int32_t;
inline constexpr Token kNoToken = -1;

}  // namespace kve
