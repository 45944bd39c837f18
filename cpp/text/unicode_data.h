// The tables behind unicode.h; see tests/oracle/make_unicode_tables.py for their layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kve::unicode {

extern const uint32_t kCategoryRuns[];
extern const size_t kCategoryRunCount;
extern const uint64_t kLowerCaseRuns[];
extern const size_t kLowerCaseRunCount;
extern const uint64_t kBaseLetters[];
extern const size_t kBaseLetterCount;

}  // namespace kve::unicode
