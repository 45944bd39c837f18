// DuoAttention (arXiv 2410.10819): retrieval heads keep everything, streaming heads their first and
// newest tokens. Which is which is told by a file of gates, learned by others: lines of numbers
// from 0 to 1, a line per layer, a number per kv head, blanks or tabs between them.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>
#include <string>
#include <system_error>

#include "base/error.h"
#include "base/printable.h"
#include "cache/select/selectors.h"

namespace kve {
namespace {

constexpr size_t kMaxFile = 1 << 20;

std::vector<double> read_gates(const std::string& path, int n_layers, int n_kv_heads) {
  // A pipe would be waited for, and a device may never end.
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw IoError(message("gates ", quoted(path), ": expected a regular file"));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char chunk[4096];
  while (file.read(chunk, sizeof(chunk)) || file.gcount() > 0) {
    text.append(chunk, static_cast<size_t>(file.gcount()));
    if (text.size() > kMaxFile) break;
  }
  if (!file.eof() && text.size() <= kMaxFile) {
    throw IoError(message("gates ", quoted(path), ": cannot be read"));
  }
  if (text.size() > kMaxFile) {
    throw FormatError(message("gates ", quoted(path), ": expected at most ", kMaxFile, " bytes"));
  }
  std::vector<double> gates;
  std::istringstream lines(text);
  int n_lines = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream numbers(line);
    int n = 0;
    for (double gate = 0; numbers >> gate; ++n) {
      if (!(gate >= 0 && gate <= 1)) {
        throw FormatError(message("gates ", quoted(path), ", line ", n_lines + 1,
                                  ": expected numbers from 0 to 1, found ", gate));
      }
      gates.push_back(gate);
    }
    if (!numbers.eof() || (n != n_kv_heads && n > 0)) {
      throw FormatError(message("gates ", quoted(path), ", line ", n_lines + 1, ": expected ",
                                n_kv_heads, " numbers, one per kv head"));
    }
    n_lines += n > 0;
  }
  if (n_lines != n_layers) {
    throw FormatError(message("gates ", quoted(path), ": expected ", n_layers,
                              " lines, one per layer, found ", n_lines));
  }
  return gates;
}

class Duo : public Selector {
 public:
  Duo(const SelectorSpec& spec, int n_layers, int n_kv_heads)
      : Selector(spec), n_kv_heads_(n_kv_heads) {
    const std::vector<double> gates = read_gates(spec.gates, n_layers, n_kv_heads);
    std::vector<size_t> order(gates.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return gates[a] < gates[b]; });
    const double n = std::nearbyint(static_cast<double>(gates.size()) * spec.streaming);
    is_streaming_.resize(gates.size());
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) is_streaming_[order[i]] = true;
  }

  int budget(const LayerPlace& place, int head) const override {
    return is_streaming(place, head) ? spec_.sinks + spec_.recent : INT32_MAX;
  }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) {
      for (size_t r = 0; r < out[h].size(); ++r) out[h][r] = static_cast<float>(r);
    }
  }

 private:
  bool is_streaming(const LayerPlace& place, int head) const {
    return is_streaming_[static_cast<size_t>(place.layer) * static_cast<size_t>(n_kv_heads_) +
                         static_cast<size_t>(head)];
  }

  int n_kv_heads_;
  std::vector<bool> is_streaming_;
};

}  // namespace

std::unique_ptr<Selector> make_duo(const SelectorSpec& spec, int n_layers, int n_kv_heads) {
  return std::make_unique<Duo>(spec, n_layers, n_kv_heads);
}

}  // namespace kve
