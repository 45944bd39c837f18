// Counts what the calling thread allocates through operator new. Defined in
// allocation_watch_test.cpp, which replaces the operators for the whole test program.
#pragma once

#include <cstddef>

namespace kve::test {

struct Allocations {
  size_t count = 0;
  size_t bytes = 0;    // of all allocations together, freed or not: a bound of the peak
  size_t largest = 0;  // bytes
};

// What this thread has allocated since the watch was made. One at a time per thread.
class AllocationWatch {
 public:
  AllocationWatch();
  ~AllocationWatch();
  Allocations seen() const;
};

}  // namespace kve::test
