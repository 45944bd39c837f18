// Forward passes of a model, one at a time.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

#include "base/error.h"

namespace kve {

// A mutex that says so instead of waiting for itself: a cache's scorer is called within a pass.
class PassMutex {
 public:
  // Throws ConfigError when this thread holds it.
  void lock() {
    if (owner_.load(std::memory_order_relaxed) == std::this_thread::get_id()) {
      throw ConfigError(
          "model: expected one forward pass at a time, found one begun by the scorer of another");
    }
    mutex_.lock();
    owner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  }
  void unlock() {
    owner_.store({}, std::memory_order_relaxed);
    mutex_.unlock();
  }

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
};

}  // namespace kve
