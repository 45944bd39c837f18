// Reads an architecture's hyper-parameters from GGUF metadata, each checked against what is sane,
// so that no later product of them can overflow and no message is about a derived number.
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "gguf/gguf_file.h"

namespace kve {

class Hyperparameters {
 public:
  explicit Hyperparameters(const GgufFile& file)
      : file_(file), arch_(file.get<std::string>("general.architecture")) {}

  const std::string& arch() const { return arch_; }
  const GgufFile& file() const { return file_; }
  // "attention.head_count" -> "llama.attention.head_count"
  std::string key(std::string_view name) const { return message(arch_, ".", name); }
  bool has(std::string_view name) const { return file_.has(key(name)); }

  int integer(std::string_view name, int64_t low, int64_t high) const {
    return checked(name, file_.get<int64_t>(key(name)), low, high);
  }
  int integer_or(std::string_view name, int64_t fallback, int64_t low, int64_t high) const {
    return checked(name, file_.get_or<int64_t>(key(name), fallback), low, high);
  }
  // One number for all layers, or an array with one for each.
  std::vector<int> per_layer(std::string_view name, int n_layers, int64_t low, int64_t high) const {
    const MetaValue* value = file_.metadata().find(key(name));
    if (value == nullptr || !value->is_array()) {
      return std::vector<int>(static_cast<size_t>(n_layers), integer(name, low, high));
    }
    const std::vector<int64_t> numbers = value->integers();
    if (numbers.size() < static_cast<size_t>(n_layers)) {
      throw FormatError(message(key(name), ": expected one number for each of ", n_layers,
                                " layers, found ", numbers.size()));
    }
    std::vector<int> result(static_cast<size_t>(n_layers));
    for (size_t i = 0; i < result.size(); ++i) result[i] = checked(name, numbers[i], low, high);
    return result;
  }
  float real(std::string_view name, double low, double high) const {
    return checked_real(name, file_.get<double>(key(name)), low, high);
  }
  float real_or(std::string_view name, double fallback, double low, double high) const {
    return checked_real(name, file_.get_or<double>(key(name), fallback), low, high);
  }
  std::string text_or(std::string_view name, std::string fallback) const {
    return file_.get_or<std::string>(key(name), std::move(fallback));
  }

 private:
  int checked(std::string_view name, int64_t value, int64_t low, int64_t high) const {
    if (value < low || value > high) {
      throw FormatError(message(key(name), ": expected ", low, " to ", high, ", found ", value));
    }
    return static_cast<int>(value);
  }
  float checked_real(std::string_view name, double value, double low, double high) const {
    if (!std::isfinite(value) || value < low || value > high) {
      throw FormatError(message(key(name), ": expected ", low, " to ", high, ", found ", value));
    }
    return static_cast<float>(value);
  }

  const GgufFile& file_;
  std::string arch_;
};

// Limits that hold for every architecture.
inline constexpr int64_t kMaxWidth = 1 << 18;
inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxHeads = 1024;
inline constexpr int64_t kMaxHeadDim = 1024;
inline constexpr int64_t kMaxContext = 1 << 28;

}  // namespace kve
