#include "sampling/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/printable.h"

namespace kve {
namespace {

// Bytes of the UTF-8 character that starts with `lead`; 0 when none does.
size_t utf8_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead < 0xe0) return 2;
  if (lead >= 0xe0 && lead < 0xf0) return 3;
  if (lead >= 0xf0 && lead < 0xf5) return 4;
  return 0;
}

// Whole characters only: a stop string that begins or ends within one would cut the text there.
bool has_whole_characters(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(static_cast<unsigned char>(text[i]));
    if (length == 0 || length > text.size() - i) return false;
    for (size_t k = 1; k < length; ++k) {
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) return false;
    }
    i += length;
  }
  return true;
}

void check(const std::vector<std::string>& stops) {
  if (stops.size() > StopMatcher::kMaxStops) {
    throw ConfigError(message("stop: expected at most ", StopMatcher::kMaxStops, " strings, found ",
                              stops.size()));
  }
  for (const std::string& stop : stops) {
    if (stop.empty() || stop.size() > StopMatcher::kMaxStopBytes) {
      throw ConfigError(message("stop: expected 1 to ", StopMatcher::kMaxStopBytes,
                                " bytes in each string, found ", stop.size()));
    }
    if (!has_whole_characters(stop)) {
      throw ConfigError(message("stop: expected UTF-8, found ", quoted(stop)));
    }
  }
}

// One step of Knuth-Morris-Pratt: how much of `text` the input ends with once `byte` came, when it
// ended with `state` bytes of it before.
int advance(const std::string& text, const std::vector<int>& failure, int state, char byte) {
  while (state > 0 && text[static_cast<size_t>(state)] != byte) {
    state = failure[static_cast<size_t>(state - 1)];
  }
  return text[static_cast<size_t>(state)] == byte ? state + 1 : 0;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  check(stops);
  stops_.reserve(stops.size());
  for (std::string& text : stops) {
    Stop stop{std::move(text), {0}, 0};
    for (size_t i = 1; i < stop.text.size(); ++i) {
      stop.failure.push_back(advance(stop.text, stop.failure, stop.failure[i - 1], stop.text[i]));
    }
    stops_.push_back(std::move(stop));
  }
}

std::string StopMatcher::push(std::string_view piece) {
  if (stopped()) return {};
  for (size_t i = 0; i < piece.size(); ++i) {
    for (Stop& stop : stops_) {
      stop.state = advance(stop.text, stop.failure, stop.state, piece[i]);
      if (static_cast<size_t>(stop.state) < stop.text.size()) continue;
      const size_t index = static_cast<size_t>(&stop - stops_.data());
      if (!stopped() || stop.text.size() > matched().size()) matched_ = index;
    }
    if (!stopped()) continue;
    held_ += piece.substr(0, i + 1);
    held_.resize(held_.size() - matched().size());
    return std::exchange(held_, {});
  }
  held_ += piece;
  int keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.state);
  const size_t safe = held_.size() - static_cast<size_t>(keep);
  std::string out = held_.substr(0, safe);
  held_.erase(0, safe);
  return out;
}

std::string StopMatcher::finish() {
  for (Stop& stop : stops_) stop.state = 0;
  return std::exchange(held_, {});
}

void StopMatcher::reset() {
  finish();
  matched_ = kNone;
}

}  // namespace kve
