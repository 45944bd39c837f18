// Finds stop strings in streamed text, across the borders of its pieces.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace kve {

// The first stop string to be completed ends the text; of several completed by the same character
// the longest does. The stop string itself is not part of the text. What is emitted does not depend
// on how the text is cut into pieces, and only text that could still become a stop string is held.
class StopMatcher {
 public:
  static constexpr size_t kMaxStops = 256;
  static constexpr size_t kMaxStopBytes = 4096;

  // Throws ConfigError for an empty, too long or not UTF-8 stop string, or too many of them.
  explicit StopMatcher(std::vector<std::string> stops = {});

  // Takes the next piece (whole UTF-8 characters) and returns the text that is safe to show.
  // After a match: nothing.
  std::string push(std::string_view piece);
  // At the end of generation: the text still held.
  std::string finish();
  void reset();

  bool stopped() const { return matched_ != kNone; }
  // The stop string that was found; only after stopped().
  const std::string& matched() const { return stops_[matched_].text; }
  // Bytes held now: fewer than the longest stop string.
  size_t held_bytes() const { return held_.size(); }

 private:
  static constexpr size_t kNone = static_cast<size_t>(-1);
  struct Stop {
    std::string text;
    std::vector<int> failure;  // Knuth-Morris-Pratt: the longest border of every prefix
    int state = 0;             // bytes of `text` that the input ends with
  };

  std::vector<Stop> stops_;
  std::string held_;
  size_t matched_ = kNone;
};

}  // namespace kve
