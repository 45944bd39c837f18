// Reads all that an opened file offers, as its callers might; sanitizers watch. Used by the
// corruption tests and the fuzzer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "gguf/gguf_file.h"

namespace kve::test {

// A sum over everything, so that nothing is optimised away.
inline uint64_t read_everything(const GgufFile& file) {
  uint64_t sum = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    for (size_t i = 0; i < tensor.bytes; ++i) sum += static_cast<uint64_t>(tensor.data[i]);
    sum += static_cast<uint64_t>(file.tensor(tensor.name).rows());
  }
  const auto attempt = [&](const auto& read) {
    try {
      sum += static_cast<uint64_t>(read());
    } catch (const FormatError& error) {
      sum += static_cast<uint64_t>(error.what()[0]);
    }
  };
  for (const MetaValue& value : file.metadata()) {
    attempt([&] { return value.as<int64_t>(); });
    attempt([&] { return value.as<uint64_t>(); });
    attempt([&] { return value.as<uint8_t>(); });
    attempt([&] { return value.as<bool>(); });
    attempt([&] { return value.as<double>() > 0; });
    attempt([&] { return value.as<std::string>().size(); });
    attempt([&] { return value.as<std::vector<int32_t>>().size(); });
    attempt([&] { return value.as<std::vector<float>>().size(); });
    attempt([&] { return value.as<std::vector<std::string>>().size(); });
  }
  return sum;
}

}  // namespace kve::test
