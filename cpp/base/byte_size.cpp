#include "base/byte_size.h"

#include <algorithm>
#include <utility>

namespace kve {

double take_number(std::string_view* rest) {
  const auto is_digit = [&] {
    return !rest->empty() && rest->front() >= '0' && rest->front() <= '9';
  };
  double number = is_digit() ? 0 : -1;
  for (; is_digit(); rest->remove_prefix(1)) {
    number = std::min(number * 10 + (rest->front() - '0'), kMostByteSize);
  }
  if (number < 0 || !rest->starts_with('.')) return number;
  rest->remove_prefix(1);
  for (double place = 0.1; is_digit(); rest->remove_prefix(1), place /= 10) {
    number += place * (rest->front() - '0');
  }
  return number;
}

double parse_byte_size(std::string_view text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"", 1},          {"B", 1},    {"KiB", 1 << 10}, {"MiB", 1 << 20},
      {"GiB", 1 << 30}, {"kB", 1e3}, {"MB", 1e6},      {"GB", 1e9},
  };
  const double number = take_number(&text);
  while (text.starts_with(' ')) text.remove_prefix(1);
  if (number < 0) return -1;
  for (const auto& [name, size] : kUnits) {
    if (text == name) return std::min(number * size, kMostByteSize);
  }
  return -1;
}

}  // namespace kve
