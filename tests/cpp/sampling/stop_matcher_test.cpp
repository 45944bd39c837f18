#include "sampling/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"

namespace kve {
namespace {

using Strings = std::vector<std::string>;

// What may be shown of a text that has come so far, by trying everything.
struct Expected {
  std::string shown;
  std::string matched;  // empty: no stop string yet
};

Expected brute_force(const Strings& stops, std::string_view text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string_view longest;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop) && stop.size() > longest.size()) longest = stop;
    }
    if (longest.empty()) continue;
    return {std::string(text.substr(0, end - longest.size())), std::string(longest)};
  }
  size_t held = 0;
  for (const std::string& stop : stops) {
    for (size_t n = 1; n < stop.size() && n <= text.size(); ++n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) held = std::max(held, n);
    }
  }
  return {std::string(text.substr(0, text.size() - held)), ""};
}

// Feeds `pieces` and compares after each of them.
void check(const Strings& stops, const Strings& pieces) {
  StopMatcher matcher(stops);
  std::string text;
  std::string shown;
  for (const std::string& piece : pieces) {
    text += piece;
    shown += matcher.push(piece);
    const Expected expected = brute_force(stops, text);
    ASSERT_EQ(shown, expected.shown) << "text '" << text << "'";
    ASSERT_EQ(matcher.stopped(), !expected.matched.empty()) << "text '" << text << "'";
    if (matcher.stopped()) {
      ASSERT_EQ(matcher.matched(), expected.matched);
    } else {
      ASSERT_EQ(matcher.held_bytes(), text.size() - shown.size());
    }
  }
  shown += matcher.finish();
  if (!matcher.stopped()) {
    ASSERT_EQ(shown, text);
  }
}

TEST(StopMatcher, AgreesWithBruteForceHoweverTheTextIsCut) {
  Random random(21);
  // Few and alike characters, so that matches overlap and fail late.
  const Strings alphabet = {"a", "b", "a", "é", "ß", "\xE2\x82\xAC"};
  const auto random_string = [&](size_t max) {
    Strings out;
    const size_t n = 1 + random.bits() % max;
    for (size_t i = 0; i < n; ++i) out.push_back(alphabet[random.bits() % alphabet.size()]);
    return out;
  };
  const auto join = [](const Strings& parts, size_t first, size_t last) {
    std::string out;
    for (size_t i = first; i < last; ++i) out += parts[i];
    return out;
  };
  for (int round = 0; round < 2000; ++round) {
    Strings stops;
    for (uint64_t i = random.bits() % 4; i > 0; --i) {
      const Strings stop = random_string(5);
      stops.push_back(join(stop, 0, stop.size()));
    }
    const Strings text = random_string(24);
    check(stops, text);  // one character at a time
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      check(stops, {join(text, 0, cut), join(text, cut, text.size())});
    }
    for (int trial = 0; trial < 3; ++trial) {
      Strings pieces;
      for (size_t i = 0; i < text.size();) {
        const size_t next = std::min(text.size(), i + random.bits() % 5);
        pieces.push_back(join(text, i, next));
        i = next;
      }
      check(stops, pieces);
    }
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
}

TEST(StopMatcher, PassesEverythingWithoutStops) {
  StopMatcher matcher;
  EXPECT_EQ(matcher.push("a\n\nb"), "a\n\nb");
  EXPECT_EQ(matcher.held_bytes(), 0u);
  EXPECT_EQ(matcher.finish(), "");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcher, HoldsBackAcrossTokens) {
  StopMatcher matcher({"</answer>", "\nUser:"});
  EXPECT_EQ(matcher.push("42 <"), "42 ");
  EXPECT_EQ(matcher.push("/ans"), "");
  EXPECT_EQ(matcher.push("w </answ"), "</answ ");
  EXPECT_EQ(matcher.push("er> more"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.matched(), "</answer>");
  EXPECT_EQ(matcher.push("still more"), "");
  EXPECT_EQ(matcher.finish(), "");
  matcher.reset();
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.push("a\nUse"), "a");
  EXPECT_EQ(matcher.finish(), "\nUse");
  EXPECT_EQ(matcher.push("r:"), "r:");  // finish() ended that text
}

TEST(StopMatcher, LongRepetitionsTakeLinearTime) {
  std::string stop(StopMatcher::kMaxStopBytes - 1, 'a');
  stop += 'b';
  StopMatcher matcher(Strings(8, stop));
  std::string shown;
  for (int i = 0; i < 2000; ++i) shown += matcher.push(std::string(500, 'a'));
  EXPECT_EQ(shown.size() + matcher.held_bytes(), 1000000u);
  EXPECT_EQ(matcher.held_bytes(), StopMatcher::kMaxStopBytes - 1);
}

TEST(StopMatcher, RefusesBadStops) {
  const auto refused = [](Strings stops) -> std::string {
    try {
      StopMatcher matcher(std::move(stops));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(refused({"x", ""}), "stop: expected 1 to 4096 bytes in each string, found 0");
  EXPECT_EQ(refused({std::string(4097, 'x')}),
            "stop: expected 1 to 4096 bytes in each string, found 4097");
  EXPECT_EQ(refused(Strings(257, "x")), "stop: expected at most 256 strings, found 257");
  EXPECT_EQ(refused({"\xC3"}), "stop: expected UTF-8, found '\\xc3'");
  EXPECT_EQ(refused({"\xA9 x"}), "stop: expected UTF-8, found '\\xa9 x'");
  EXPECT_EQ(refused({"x\xE2\x82"}), "stop: expected UTF-8, found 'x\\xe2\\x82'");
  EXPECT_EQ(refused({"é€𝄞"}), "no error");
}

}  // namespace
}  // namespace kve
