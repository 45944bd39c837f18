// The values of parameters as a spec writes them, in the order of their enumerations.
#pragma once

#include <string_view>

namespace kve {

// What separates the words of a spec, beside blanks.
inline constexpr std::string_view kSpecSigns = "+:,=";

inline constexpr std::string_view kPerNames[] = {"token", "channel"};
inline constexpr std::string_view kFitNames[] = {"range", "search", "norm", "energy", "least"};
inline constexpr std::string_view kScaleNames[] = {"half", "log8"};
inline constexpr std::string_view kChannelNames[] = {"plain", "centred", "scaled"};
inline constexpr std::string_view kSealNames[] = {"page", "window", "row"};
inline constexpr std::string_view kResidualNames[] = {"none", "coded", "fitted"};
inline constexpr std::string_view kCoefficientNames[] = {"f16", "int8"};
inline constexpr std::string_view kPrefillNames[] = {"coded", "exact"};

}  // namespace kve
