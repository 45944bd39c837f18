// Numbers of bytes as people write them.
#pragma once

#include <string_view>

namespace kve {

// The most that a size can say.
inline constexpr double kMostByteSize = 1e15;

// "64MiB", "1.5 GiB", "10kB" or "300000"; negative where `text` is none of these.
double parse_byte_size(std::string_view text);
// The decimal number that `rest` begins with, which is taken from it, at most kMostByteSize;
// negative if there is none.
double take_number(std::string_view* rest);

}  // namespace kve
