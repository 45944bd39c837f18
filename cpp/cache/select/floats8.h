// Eight floats side by side, so that sums stay in registers however a compiler would unroll loops
// over them: where vectors are smaller it takes several.
#pragma once

#include <cstring>

namespace kve {

using Floats8 = float __attribute__((vector_size(32)));

inline void load(const float* from, Floats8* to) { std::memcpy(to, from, sizeof(*to)); }
inline void store(const Floats8& from, float* to) { std::memcpy(to, &from, sizeof(from)); }

}  // namespace kve
