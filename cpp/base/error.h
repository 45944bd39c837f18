// base/ holds what every other folder may use: errors, views, half precision, memory, threads.
// It depends on the C++ standard library only.
//
// Every error a caller can cause is one of the classes below; its message is one sentence that
// names the thing, what was expected and what was found:
//   "blk.3.attn_k.weight: expected [4096, 1024], found [4096, 512]".
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

namespace kve {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A file or byte stream is malformed.
class FormatError : public Error {
  using Error::Error;
};
// The input is well-formed but asks for something this engine does not have.
class UnsupportedError : public Error {
  using Error::Error;
};
// A bad option, prompt, cache spec or argument.
class ConfigError : public Error {
  using Error::Error;
};
// Context or memory is exhausted.
class CapacityError : public Error {
  using Error::Error;
};
// A compute device failed or is missing.
class DeviceError : public Error {
  using Error::Error;
};
// The operating system refused to read or write.
class IoError : public Error {
  using Error::Error;
};
// The caller's cancellation callback asked to stop; the session is as it was before the call.
class CancelledError : public Error {
  using Error::Error;
};

// Joins its arguments with operator<<: message("blk.", 3, ": expected ", a, ", found ", b).
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

[[noreturn]] inline void assertion_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "kvengine: internal error: %s at %s:%d\n", condition, file, line);
  std::abort();
}

}  // namespace kve

// Programmer errors only: must be unreachable from any file, prompt or option.
#define KVE_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : ::kve::assertion_failed(#condition, __FILE__, __LINE__))
