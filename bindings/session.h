// A session as Python holds it. Python code may call it from several threads, or while a generation
// is running; the engine's sessions may be used by one caller at a time.
#pragma once

#include <pybind11/numpy.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "bindings.h"

namespace kve::python {

struct SessionHandle {
  explicit SessionHandle(Session session_) : session(std::move(session_)) {}

  Session session;
  std::atomic_flag busy;
  uint64_t changes = 0;  // counts calls that changed what the session holds
};

// The right to use a session, held for one call.
class SessionUse {
 public:
  // Throws ConfigError when another call is still at it.
  explicit SessionUse(SessionHandle& handle) : handle_(handle) {
    if (handle.busy.test_and_set(std::memory_order_acquire)) {
      throw ConfigError(
          "session: expected one caller at a time, found it in use by another thread or callback");
    }
  }
  ~SessionUse() { handle_.busy.clear(std::memory_order_release); }
  SessionUse(const SessionUse&) = delete;
  SessionUse& operator=(const SessionUse&) = delete;

  Session* operator->() const { return &handle_.session; }
  Session& operator*() const { return handle_.session; }

 private:
  SessionHandle& handle_;
};

// GenerateOptions, with the session of DraftOptions as Python holds it.
struct OptionsHandle {
  GenerateOptions options;
  std::shared_ptr<SessionHandle> draft;
};

// A read-only view [rows, cols] that keeps the logits alive: the engine writes the next ones
// elsewhere as long as anybody holds these.
py::array_t<float> logits_view(const std::shared_ptr<const Logits>& logits);

}  // namespace kve::python
